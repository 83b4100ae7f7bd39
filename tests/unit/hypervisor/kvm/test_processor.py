"""A VCPU's thread on this machine's KVM, with guests of a few instructions and a script in place of Xen."""

from __future__ import annotations

import mmap
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from pyxen.abi.vcpu import Context32
from pyxen.hypervisor import throttle
from pyxen.hypervisor.builder import acpi, entry
from pyxen.hypervisor.builder.hypercall_sites import PORT
from pyxen.hypervisor.kvm import Kvm, Vm
from pyxen.hypervisor.kvm.uapi import Capability, Register
from pyxen.hypervisor.kvm.vcpu import KICK
from pyxen.hypervisor.memory import GuestMemory
from pyxen.hypervisor.processor import Hold, Processor
from pyxen.hypervisor.throttle import Throttle
from pyxen.hypervisor.trace.decode import decode
from pyxen.hypervisor.trace.observed import Kind
from tests.unit.hypervisor.kvm.micro import CODE, needs_kvm

pytestmark = needs_kvm
_OUT = f"e7{PORT:02x}"
_SOON_S = 20.0


class Xen:
    """Takes down what the processor asks, in order; answers hypercalls by ``answer``."""

    def __init__(self, answer: Callable[[int], int] = lambda nr: 0) -> None:
        self.seen: queue.Queue[tuple[object, ...]] = queue.Queue()
        self._answer = answer

    def hypercall(self, vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int:
        self.seen.put(("hypercall", vcpu_index, nr, args, bits))
        return self._answer(nr)

    def started(self, vcpu: int) -> None:
        self.seen.put(("started", vcpu))

    def halted(self, vcpu: int) -> None:
        self.seen.put(("halted", vcpu))

    def switched_off(self) -> None:
        self.seen.put(("switched off",))

    def triple_fault(self, vcpu: int) -> None:
        self.seen.put(("triple fault", vcpu))

    def failed(self, vcpu: int, reason: str) -> None:
        self.seen.put(("failed", vcpu, reason))

    def next(self) -> tuple[object, ...]:
        return self.seen.get(timeout=_SOON_S)


@contextmanager
def processor(code: str, xen: Xen, *, number: int = 0) -> Iterator[tuple[Processor, GuestMemory, Vm]]:
    """VCPU ``number`` in 32-bit flat mode at ``code``; others than 0 wait to be started."""
    before = signal.signal(KICK, _ignore)
    kvm = Kvm()
    vm = kvm.create_vm()
    vm.enable(Capability.USER_SPACE_MSR, 3)
    vm.create_irqchip()
    memory = GuestMemory([(0, mmap.mmap(-1, 0x10000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))])
    memory.write(CODE, bytes.fromhex(code))
    vm.add_memory(memory.regions[0])
    vcpu = vm.create_vcpu(number)
    if number == 0:
        sregs = vcpu.get_sregs()
        regs = entry.pvh(sregs, CODE, 0x5000)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
    found = Processor(number, vcpu, memory, xen)
    try:
        yield found, memory, vm
    finally:
        found.end()
        vm.close()
        kvm.close()
        signal.signal(KICK, before)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def test_a_hypercall_reaches_xen_with_its_arguments_and_its_result_the_guest() -> None:
    xen = Xen(lambda nr: -38)
    #   mov eax, 0x11; mov ecx, 2; mov edx, 3; mov esi, 4; mov edi, 5; mov ebp, 6; out; mov [0x2000], eax; jmp $
    code = f"b811000000 b902000000 ba03000000 be04000000 bf05000000 bd06000000 {_OUT} a300200000 {_OUT} ebfe"
    with processor(code, xen) as (cpu, memory, _):
        cpu.start()
        assert xen.next() == ("hypercall", 0, 0x11, (0x5000, 2, 3, 4, 5, 6), 32)
        xen.next()
        assert memory.u32(0x2000) == -38 & 0xFFFFFFFF


def test_who_observes_is_shown_all_other_exits() -> None:
    xen = Xen()
    seen: queue.Queue[tuple[int, int, int, int, bytes, bytes]] = queue.Queue()
    #   mov al, 0x8f; out 0x70, al; in al, 0x71; mov ecx, 0x123; rdmsr; mov [0xd0000000], eax; out; jmp $
    code = f"b08f e670 e471 b923010000 0f32 a3000000d0 {_OUT} ebfe"
    with processor(code, xen) as (cpu, _, _):
        cpu.observer = lambda *facts: seen.put(facts)
        cpu.start()
        found = [
            decode((Kind.EXIT, facts[2], facts[3], facts[0], facts[1], *facts[4:]), facts[2])
            for facts in (seen.get(timeout=_SOON_S) for _ in range(3))
        ]
    assert [(each.name, each.args, each.out, each.error) for each in found] == [
        ("out", {"port": "0x70 rtc", "size": 1, "value": "0x8f"}, {}, None),
        ("in", {"port": "0x71 rtc", "size": 1}, {"value": "0xff"}, None),
        ("rdmsr", {"msr": "0x123"}, {}, "#GP"),
    ]


def test_a_held_processor_stands_still_until_it_is_released() -> None:
    xen = Xen()
    #   inc eax; out; jmp -5
    with processor(f"40 {_OUT} ebfb", xen) as (cpu, _, _):
        cpu.hold(Hold.PAUSED)
        cpu.start()
        assert cpu.wait_parked(_SOON_S)
        assert xen.seen.empty()
        cpu.hold(Hold.STOPPED)
        cpu.release(Hold.PAUSED)
        assert cpu.wait_parked(_SOON_S)
        assert xen.seen.empty()
        cpu.release(Hold.STOPPED)
        assert xen.next()[2] == 1
        for _ in range(5):
            cpu.hold(Hold.PAUSED)
            assert cpu.wait_parked(_SOON_S)
            count = xen.seen.qsize()
            time.sleep(0.005)
            assert xen.seen.qsize() == count
            cpu.release(Hold.PAUSED)
            for _ in range(count + 1):
                xen.next()


def test_a_throttled_processor_runs_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_PERIOD_S", 0.05)
    xen = Xen()
    with processor(f"40 {_OUT} ebfb", xen) as (cpu, _, _):
        cpu.start()
        slowed = Throttle([cpu])
        slowed.set(0.6)
        for share in (0.6, 0.9):
            slowed.set(share)
            for _ in range(3):
                assert cpu.wait_parked(_SOON_S), "it stands still"
                while not xen.seen.empty():
                    xen.next()
                xen.next()  # and goes on
        slowed.set(0.0)
        assert not cpu.is_held(Hold.THROTTLED)
        while not xen.seen.empty():
            xen.next()
        xen.next()


def test_the_state_of_a_held_processor_is_complete() -> None:
    xen = Xen(lambda nr: 0x77)
    with processor(f"b801000000 {_OUT} f4", xen) as (cpu, _, _):
        real = xen.hypercall

        def hold(vcpu_index: int, nr: int, args: tuple[int, ...], bits: int) -> int:
            cpu.hold(Hold.PAUSED)
            return real(vcpu_index, nr, args, bits)

        xen.hypercall = hold  # type: ignore[method-assign]
        cpu.start()
        assert cpu.wait_parked(_SOON_S)
        regs = cpu.kvm.get_regs()
        assert regs[Register.RAX] == 0x77
        assert regs[Register.RIP] == CODE + 7


def test_an_endless_loop_is_left_when_the_processor_ends() -> None:
    xen = Xen()
    with processor(f"{_OUT} ebfe", xen) as (cpu, _, _):
        cpu.start()
        xen.next()


def test_a_halted_processor_can_be_held() -> None:
    xen = Xen()
    with processor(f"{_OUT} fa f4", xen) as (cpu, _, _):
        cpu.start()
        xen.next()
        cpu.hold(Hold.PAUSED)
        assert cpu.wait_parked(_SOON_S)


def test_writing_the_sleep_port_switches_off() -> None:
    xen = Xen()
    #   mov dx, 0x604; mov al, 0x34; out dx, al; jmp $
    with processor(f"66ba0406 b0{acpi.SOFT_OFF:02x} ee ebfe", xen) as (cpu, _, _):
        cpu.start()
        assert xen.next() == ("switched off",)


def test_a_triple_fault_is_told_and_ends_the_run() -> None:
    xen = Xen()
    with processor("0f0b", xen) as (cpu, _, _):  # ud2, without any handler
        cpu.start()
        assert xen.next() == ("triple fault", 0)
        assert cpu.wait_parked(_SOON_S)


def test_a_fault_of_our_own_ends_the_run_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(nr: int) -> int:
        raise KeyError("fault")

    xen = Xen(answer)
    with processor(f"{_OUT} ebfe", xen) as (cpu, _, _):
        cpu.start()
        xen.next()
        assert xen.next() == ("failed", 0, "KeyError: 'fault'")
    assert "Traceback" in capsys.readouterr().err


def test_ports_and_addresses_where_nothing_is_read_as_ones() -> None:
    xen = Xen()
    #   mov dx, 0x1234; in eax, dx; mov [0x2000], eax; mov eax, [0x80000]; mov [0x2004], eax;
    #   in al, 0x42; mov [0x2008], al; mov [0x80000], al; out; jmp $
    code = f"66ba3412 ed a300200000 a100000800 a304200000 e442 a208200000 a200000800 {_OUT} ebfe"
    with processor(code, xen) as (cpu, memory, _):
        memory.put_u8(0x2008, 1)
        cpu.start()
        xen.next()
        assert memory.u64(0x2000) == (1 << 64) - 1
        assert memory.u8(0x2008) == 0


def test_a_guest_gets_its_hypercall_page() -> None:
    xen = Xen()
    #   mov ecx, 0x40000000; mov eax, 0x3000; xor edx, edx; wrmsr; mov esp, 0x8000; call 0x3000+32*17; jmp $
    call = (0x3000 + 32 * 17 - (CODE + 24)).to_bytes(4, "little").hex()
    with processor(f"b900000040 b800300000 31d2 0f30 bc00800000 e8{call} ebfe", xen) as (cpu, _, _):
        cpu.start()
        assert xen.next()[2] == 17


def test_another_vcpu_starts_where_it_is_told() -> None:
    xen = Xen()
    with processor(f"{_OUT} ebfe", xen, number=1) as (cpu, _, _):
        cpu.hold(Hold.DOWN)
        cpu.start()
        assert cpu.wait_parked(_SOON_S)
        assert not cpu.up
        cpu.begin_at(flat())
        cpu.release(Hold.DOWN)
        assert xen.next()[:3] == ("hypercall", 1, 9)
        assert cpu.up


def test_a_vcpu_that_was_never_started_can_be_held_and_ended() -> None:
    xen = Xen()
    with processor("f4", xen, number=1) as (cpu, _, _):
        cpu.start()
        cpu.hold(Hold.PAUSED)
        assert cpu.wait_parked(_SOON_S)
        cpu.release(Hold.PAUSED)


def test_a_vcpu_that_halts_for_good_is_down_until_it_is_started_again() -> None:
    xen = Xen()
    with processor(f"{_OUT} fa f4", xen, number=1) as (cpu, _, _):  # cli; hlt
        cpu.start()
        for _ in range(2):
            cpu.begin_at(flat())
            assert xen.next()[:3] == ("hypercall", 1, 9)
            assert look_until_down(cpu, _SOON_S)
            assert xen.next() == ("halted", 1)


def test_a_vcpu_that_was_taken_down_while_it_ran_is_not_taken_for_one_that_was_started() -> None:
    xen = Xen()
    with processor("ebfe", xen) as (vcpu, _, _):
        vcpu.start()
        time.sleep(0.05)
        vcpu.hold(Hold.DOWN)
        vcpu.up = False
        assert vcpu.wait_parked(_SOON_S)
        assert not vcpu.up
        assert xen.seen.empty()


def test_a_vcpu_that_waits_for_interrupts_is_up() -> None:
    xen = Xen()
    with processor(f"{_OUT} fb f4 ebfd", xen, number=1) as (cpu, _, _):  # sti; hlt
        cpu.start()
        cpu.begin_at(flat())
        xen.next()
        assert not look_until_down(cpu, 0.2)
        assert xen.seen.empty()


def look_until_down(cpu: Processor, bound_s: float) -> bool:
    until = time.monotonic() + bound_s
    while cpu.up and time.monotonic() < until:
        cpu.look()
        time.sleep(0.005)
    return not cpu.up


def flat() -> Context32:
    """Registers of 32-bit flat mode, at the code, with 9 in EAX."""
    data, code = 0xC93, 0xC9B
    zeros = dict.fromkeys(Context32._fields, 0)
    limits = {f"{name}_limit": 0xFFFFFFFF for name in ("cs", "ds", "ss", "es")}
    rights = {"cs_ar": code, "ds_ar": data, "ss_ar": data, "es_ar": data, "tr_ar": 0x8B, "tr_limit": 0x67}
    return Context32(**(zeros | limits | rights | {"eax": 9, "eip": CODE, "cr0": 1}))
