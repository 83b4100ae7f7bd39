"""Orders about a domain's state: write it, or first send memory while the guest runs and then the rest of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyxen.errors import Conflict, InvalidRequest
from pyxen.hypervisor.control import Later
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.kvm_machine import KvmMachine
from pyxen.hypervisor.state import save
from pyxen.hypervisor.state.sending import Pace, Sending


class Sleeper(Protocol):
    """The process, as far as these orders must know it."""

    @property
    def name(self) -> str: ...

    @property
    def stop_reason(self) -> str | None: ...

    @property
    def suspended(self) -> bool: ...


class StateOrders:
    """Carries them out, on the main loop's thread. ``settle`` has back ends finish what the guest has asked for."""

    def __init__(self, domain: Domain, machine: KvmMachine, process: Sleeper, settle: Callable[[], None]) -> None:
        self._domain = domain
        self._machine = machine
        self._process = process
        self._settle = settle
        self._sending: Sending | None = None
        self._working = False
        self._over = threading.Event()
        self.busy = ""
        """What can't be interrupted now, in words."""

    def commands(self) -> Mapping[str, Callable[..., object]]:
        return {
            "save-state": self.save_state,
            "send-memory": self.send_memory,
            "sending": self.sending,
            "stop-sending": self.stop_sending,
        }

    def send_memory(
        self, fds: list[int], bandwidth: int | None = None, downtime_ms: int = 300, converge: bool = True
    ) -> Later:
        """Begin a state in the one descriptor with the memory of a guest that runs; "save-state" then ends it.

        The answer comes when what is left can be sent in ``downtime_ms``; ``bandwidth`` is in bytes a second.
        """
        self._check("migrate")
        sending = self._open("migrate", fds, Pace(bandwidth, downtime_ms, converge))

        def work() -> object:
            sending.rounds()
            return self.sending()

        return self._later(work, goes_on=True)

    def sending(self) -> dict[str, int]:
        """How far it is: bytes sent and left, and the round."""
        found = self._sending
        if found is None:
            return {"sent": 0, "remaining": 0, "round": 0}
        return {"sent": found.sent, "remaining": found.remaining, "round": found.round}

    def save_state(self, fds: Sequence[int] = ()) -> Later:
        """Write the state of a guest that has suspended itself into the one descriptor; it stays suspended.

        Without a descriptor: the rest of it, after "send-memory".
        """
        self._check("save")
        suspended_by = self._domain.suspended_by
        if not self._process.suspended or suspended_by is None:
            raise Conflict(f"cannot save '{self._process.name}': it is not suspended")
        if fds or self._sending is None:
            self._open("save", fds, None)
        sending = self._sending
        assert sending is not None
        moment, cpus = self._machine.save(suspended_by)
        with self._domain.lock:
            xen = save.describe(self._domain, moment.system_time, moment.tsc_khz)
        self.busy = "its state is being saved"

        def work() -> object:
            # What a back end still did afterwards could undo what the guest does elsewhere.
            self._settle()
            return {"size": sending.finish(xen, cpus), **self.sending()}

        return self._later(work)

    def stop_sending(self) -> Later | None:
        """Call off what is being sent or saved; the answer comes when nothing of it is left."""
        if self._sending is not None:
            self._sending.stop()
        if self._working:
            return Later(self._over.wait, lambda: None)
        self._end()
        return None

    def _open(self, what: str, fds: Sequence[int], pace: Pace | None) -> Sending:
        if len(fds) != 1:
            raise InvalidRequest(f"a state is written into one file, not {len(fds)}")
        if self._sending is not None:
            raise Conflict(f"cannot {what} '{self._process.name}': its memory is being sent")
        self._sending = Sending(fds[0], self._domain, self._machine, pace)
        return self._sending

    def _later(self, work: Callable[[], object], *, goes_on: bool = False) -> Later:
        """``goes_on``: after ``work``, unless it fails, there will be more to send."""
        self._working = True
        self._over.clear()
        failed = True

        def run() -> object:
            nonlocal failed
            answer = work()
            failed = False
            return answer

        def done() -> None:
            self._working = False
            self.busy = ""
            if failed or not goes_on:
                self._end()
            self._over.set()

        return Later(run, done)

    def _end(self) -> None:
        if self._sending is not None:
            self._sending.close()
            self._sending = None

    def _check(self, what: str) -> None:
        if self._working:
            raise Conflict(f"cannot {what} '{self._process.name}': {self.busy or 'its memory is being sent'}")
        if self._process.stop_reason is not None:
            raise Conflict(f"cannot {what} '{self._process.name}': its guest has stopped")
