"""SCHED_OP by a scripted guest. Whoever waits is woken by what the test does, never by the clock alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyxen.abi import errno
from pyxen.abi import sched as abi
from pyxen.abi.hypercall import SCHED_OP
from pyxen.abi.vcpu import RUNSTATE_BLOCKED
from pyxen.hypervisor.evtchn import BackendPort
from tests.unit.hypervisor.hypercalls.scripted import NOWHERE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ScriptedGuest:
    # So long that only what the test does can end a wait.
    monkeypatch.setattr("pyxen.hypervisor.vcpu._POLL_SLICE_S", 100.0)
    guest = ScriptedGuest(bits=request.param)
    guest.place_shared_info()
    return guest


def offer(guest: ScriptedGuest) -> BackendPort:
    return guest.domain.evtchn.bind_backend(guest.domain.evtchn.alloc_unbound(), lambda: None)


def mask(guest: ScriptedGuest, port: int) -> None:
    info = guest.domain.shared_info
    info.page.test_and_set(info.layout.mask, port)


def poll(guest: ScriptedGuest, ports: list[int], timeout: int = 0, count: int | None = None) -> int:
    address = guest.store(b"".join(port.to_bytes(4, "little") for port in ports))
    value = abi.Poll(address, len(ports) if count is None else count, timeout)
    return guest.op(SCHED_OP, abi.POLL, abi.POLL_ARG, value)[0]


def while_waiting(guest: ScriptedGuest, call: Callable[[], int], act: Callable[[], None]) -> int:
    """Do ``act`` once ``call``, in another thread, waits; what ``call`` answers."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    while thread.is_alive():
        # The state changes before the wait and under the lock, which only the wait gives up.
        with guest.domain.lock:
            if guest.domain.vcpus[0].runstate.state == RUNSTATE_BLOCKED:
                act()
                break
    thread.join(60)
    assert answers, "the wait has no end"
    return answers[0]


def test_a_poll_ends_with_one_of_its_ports_even_if_masked(guest: ScriptedGuest) -> None:
    first, second = offer(guest), offer(guest)
    mask(guest, second.port)
    assert while_waiting(guest, lambda: poll(guest, [first.port, second.port]), second.notify) == 0
    assert guest.domain.evtchn.is_pending(second.port), "the event is still the guest's to handle"
    assert guest.domain.evtchn.pollers == set()


def test_a_poll_ends_with_any_event_for_its_vcpu(guest: ScriptedGuest) -> None:
    polled, other = offer(guest), offer(guest)
    assert while_waiting(guest, lambda: poll(guest, [polled.port]), other.notify) == 0


def test_a_poll_returns_at_once_if_there_is_something(guest: ScriptedGuest) -> None:
    backend = offer(guest)
    mask(guest, backend.port)
    backend.notify()
    assert poll(guest, [backend.port]) == 0
    offer(guest).notify()
    assert poll(guest, [offer(guest).port]) == 0


def test_a_poll_ends_by_time(guest: ScriptedGuest) -> None:
    assert poll(guest, [offer(guest).port], timeout=guest.machine.now) == 0
    assert poll(guest, [], timeout=guest.machine.now + 1000) == 0


def test_a_poll_ends_when_the_machine_wants_it(guest: ScriptedGuest) -> None:
    assert while_waiting(guest, lambda: poll(guest, [offer(guest).port]), lambda: guest.domain.kick(0)) == 0


def test_a_poll_ends_with_the_domain(guest: ScriptedGuest) -> None:
    assert while_waiting(guest, lambda: poll(guest, [offer(guest).port]), lambda: guest.domain.stop(0)) == 0


@pytest.mark.parametrize("port", [0, 4096, 0xFFFFFFFF])
def test_a_poll_of_what_is_no_port_is_refused(guest: ScriptedGuest, port: int) -> None:
    backend = offer(guest)
    mask(guest, backend.port)
    backend.notify()
    assert poll(guest, [backend.port, port]) == -errno.EINVAL


def test_a_poll_has_limits(guest: ScriptedGuest) -> None:
    assert poll(guest, [1], count=129) == -errno.EINVAL
    value = abi.Poll(NOWHERE & (1 << guest.bits) - 1, 1, 0)
    assert guest.op(SCHED_OP, abi.POLL, abi.POLL_ARG, value)[0] == -errno.EFAULT


def test_a_blocked_vcpu_is_woken_by_an_event(guest: ScriptedGuest) -> None:
    backend = offer(guest)
    assert while_waiting(guest, lambda: guest.call(SCHED_OP, abi.BLOCK, 0), backend.notify) == 0
    assert guest.call(SCHED_OP, abi.BLOCK, 0) == 0, "there is an event: no wait"


def test_yield_is_nothing(guest: ScriptedGuest) -> None:
    assert guest.call(SCHED_OP, abi.YIELD, 0) == 0


def shutdown(guest: ScriptedGuest, reason: int, cmd: int = abi.SHUTDOWN) -> int:
    return guest.op(SCHED_OP, cmd, abi.SHUTDOWN_ARG, abi.Shutdown(reason))[0]


@pytest.mark.parametrize("reason", range(6))
def test_the_machine_is_told_of_the_end(guest: ScriptedGuest, reason: int) -> None:
    # A guest that goes on after a suspension finds that it was cancelled.
    assert shutdown(guest, reason) == (reason == abi.SHUTDOWN_SUSPEND)
    assert guest.machine.reason == guest.domain.shutdown == reason


def test_the_first_reason_counts(guest: ScriptedGuest) -> None:
    assert shutdown(guest, abi.SHUTDOWN_CRASH) == 0
    assert shutdown(guest, abi.SHUTDOWN_REBOOT) == 0
    assert guest.domain.shutdown == abi.SHUTDOWN_CRASH
    guest.domain.resume()
    assert guest.domain.shutdown is None


def test_a_code_said_before_is_the_reason(guest: ScriptedGuest) -> None:
    assert shutdown(guest, abi.SHUTDOWN_CRASH, abi.SHUTDOWN_CODE) == 0
    assert guest.machine.reason is None
    assert shutdown(guest, abi.SHUTDOWN_REBOOT) == 0
    assert guest.machine.reason == abi.SHUTDOWN_CRASH


@pytest.mark.parametrize("reason", [6, 0xFFFFFFFF])
def test_reasons_that_are_not_there_are_refused(guest: ScriptedGuest, reason: int) -> None:
    assert shutdown(guest, reason) == -errno.EINVAL
    assert shutdown(guest, reason, abi.SHUTDOWN_CODE) == -errno.EINVAL
    assert guest.machine.reason is None


def watchdog(guest: ScriptedGuest, identity: int, timeout: int) -> int:
    return guest.op(SCHED_OP, abi.WATCHDOG, abi.WATCHDOG_ARG, abi.Watchdog(identity, timeout))[0]


def test_a_watchdog_bites_who_does_not_feed_it(guest: ScriptedGuest) -> None:
    start = guest.machine.now
    assert watchdog(guest, 0, 10) == 1
    assert watchdog(guest, 0, 5) == 2
    assert watchdog(guest, 0, 5) == -errno.EEXIST
    assert guest.machine.deadlines[0] == start + 5 * 10**9
    assert watchdog(guest, 2, 20) == 0
    assert guest.machine.deadlines[0] == start + 10 * 10**9
    guest.machine.now = start + 9 * 10**9
    guest.domain.timer_expired(0)
    assert guest.machine.reason is None
    guest.machine.now = start + 10 * 10**9
    guest.domain.timer_expired(0)
    assert guest.machine.reason == abi.SHUTDOWN_WATCHDOG


def test_a_watchdog_can_be_put_away(guest: ScriptedGuest) -> None:
    assert watchdog(guest, 0, 10) == 1
    assert watchdog(guest, 1, 0) == 0
    assert guest.machine.deadlines[0] is None
    assert watchdog(guest, 1, 5) == -errno.EINVAL


@pytest.mark.parametrize(("identity", "timeout"), [(0, 0), (3, 5), (1, 5), (0xFFFFFFFF, 1)])
def test_watchdogs_that_are_not_there_are_refused(guest: ScriptedGuest, identity: int, timeout: int) -> None:
    assert watchdog(guest, identity, timeout) == -errno.EINVAL


@pytest.mark.parametrize(("domid", "expected"), [(0, errno.EPERM), (0x7FF0, errno.EPERM), (9, errno.ESRCH)])
def test_only_the_tool_stack_shuts_others_down(guest: ScriptedGuest, domid: int, expected: int) -> None:
    value = abi.RemoteShutdown(domid, 0)
    assert guest.op(SCHED_OP, abi.REMOTE_SHUTDOWN, abi.REMOTE_SHUTDOWN_ARG, value)[0] == -expected
    assert guest.call(SCHED_OP, abi.PIN_OVERRIDE, guest.store(bytes(4))) == -errno.EPERM


@pytest.mark.parametrize("cmd", [2, 3, 4, 5, 6])
def test_structures_that_are_not_mapped_are_faults(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(SCHED_OP, cmd, NOWHERE) == -errno.EFAULT


def test_unknown_operations_are_not_there(guest: ScriptedGuest) -> None:
    assert guest.call(SCHED_OP, 8, 0) == -errno.ENOSYS
