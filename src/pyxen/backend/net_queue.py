"""One pair of a network interface's rings, and the thread that serves it."""

from __future__ import annotations

import os
import select
import threading
import traceback
from collections.abc import Callable

from pyxen.backend.guest import CallSoon, GrantError, Port
from pyxen.backend.link import Link
from pyxen.backend.net_rx import RxQueue
from pyxen.backend.net_tx import TxQueue
from pyxen.backend.ring import RingError


class NetQueue:
    """Sleeps until the guest's event or the link wakes it.

    ``fail`` is called on the main loop, through ``call_soon``, when one of the guest's rings turns out to be broken.
    """

    def __init__(
        self, name: str, tx: TxQueue, rx: RxQueue, link: Link, call_soon: CallSoon, fail: Callable[[str], None]
    ) -> None:
        self.tx = tx
        self.rx = rx
        self._link = link
        self._link_alive = True
        self._call_soon = call_soon
        self._fail = fail
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        self._stopping = False
        self._ports: tuple[Port, ...] = ()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, tx_port: Port, rx_port: Port) -> None:
        """The two may be the same."""
        self._ports = (tx_port, rx_port)
        self._thread.start()

    def wake(self) -> None:
        """From any thread; never blocks."""
        if self._event >= 0:
            os.eventfd_write(self._event, 1)

    def stop(self) -> None:
        """Finish what has begun, end the thread, let go of the ports."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        for port in self._ports:
            port.close()
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)

    def _run(self) -> None:
        try:
            while not self._stopping:
                if self.tx.serve():
                    self._ports[0].notify()
                if self._link_alive:
                    self._receive()
                self._sleep()
        except (RingError, GrantError) as error:
            self._give_up(str(error))
        except Exception as error:
            # A fault of ours that a guest has found: its device is closed, and does not stand still for ever.
            traceback.print_exc()
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        # By then the front end may have connected anew, with another queue.
        self._call_soon(lambda: None if self._stopping else self._fail(why))

    def _receive(self) -> None:
        try:
            if self.rx.serve():
                self._ports[1].notify()
        except OSError:
            # The network behind it has gone; the guest sees an interface on which nothing arrives.
            self._link_alive = False

    def _sleep(self) -> None:
        pause = self.tx.pause()
        listening = self._link_alive and (not self.rx.holding or not self.rx.stuck())
        if self._link_alive and (self.rx.more or (listening and self.rx.holding)):
            return
        wanted = select.POLLIN if listening else 0
        if self._link_alive and self._link.unsent:
            wanted |= select.POLLOUT
        if wanted:
            self._poll.register(self._link.fileno(), wanted)
        try:
            self._poll.poll(None if pause is None else pause * 1000)
        finally:
            if wanted:
                self._poll.unregister(self._link.fileno())
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
