"""A thread that works for one queue: it sleeps until the guest's event wakes it."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue

from pyxen.backend.guest import CallSoon, GrantError, Port
from pyxen.backend.ring import RingError

_LOOK_S = 0.1


class Worker:
    """Calls ``serve`` until ``idle``, then waits for ``wake``.

    ``fail`` is called on the main loop, through ``call_soon``, when the guest's ring turns out to be broken.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[], bool],
        idle: Callable[[], bool],
        call_soon: CallSoon,
        fail: Callable[[str], None],
    ) -> None:
        self._serve = serve
        self._idle = idle
        self._call_soon = call_soon
        self._fail = fail
        # Written in C, unlike threading.Event, and three times as quick. One that is there says it all.
        self._event: SimpleQueue[threading.Event | None] = SimpleQueue()
        self._stopping = False
        self._port: Port | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, port: Port) -> None:
        self._port = port
        self._thread.start()

    def wake(self) -> None:
        """From any thread; never blocks."""
        if self._event.empty():
            self._event.put(None)

    def settle(self) -> None:
        """Wait until what the guest has asked for by now is done, or the thread has ended. From any other thread."""
        done = threading.Event()
        self._event.put(done)
        while not done.wait(_LOOK_S) and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """Finish what has begun, end the thread, let go of the port."""
        self._stopping = True
        self._event.put(None)
        if self._thread.is_alive():
            self._thread.join()
        if self._port is not None:
            self._port.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                done = self._event.get()
                self._work()
                if done is not None:
                    done.set()
        except (RingError, GrantError) as error:
            self._give_up(str(error))
        except Exception as error:
            # A fault of ours that a guest has found: its device is closed, and does not stand still for ever.
            traceback.print_exc()
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        # By then the front end may have connected anew, with another worker.
        self._call_soon(lambda: None if self._stopping else self._fail(why))

    def _work(self) -> None:
        while not self._stopping:
            if self._serve() and self._port is not None:
                self._port.notify()
            if self._idle():
                return
