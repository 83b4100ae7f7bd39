"""XEN_VERSION, CONSOLE_IO, PHYSDEV_OP, MULTICALL, and the numbers that nobody serves."""

from __future__ import annotations

import threading

import pytest

from pyxen.abi import errno
from pyxen.abi import hypercall as nr
from pyxen.abi import version as abi
from pyxen.abi.features import PVH_DOMU
from pyxen.hypervisor.hypercalls.console_io import MAX_WRITE
from pyxen.hypervisor.hypercalls.multicall import MAX_CALLS
from tests.unit.hypervisor.hypercalls.scripted import NOWHERE, SCRATCH, SIZE, ScriptedGuest


@pytest.fixture(params=[64, 32])
def guest(request: pytest.FixtureRequest) -> ScriptedGuest:
    return ScriptedGuest(bits=request.param)


def test_this_is_xen_4_17(guest: ScriptedGuest) -> None:
    assert guest.call(nr.XEN_VERSION, abi.VERSION, 0) == 0x00040011


@pytest.mark.parametrize(
    ("cmd", "size", "begins"),
    [
        (abi.EXTRAVERSION, 16, b".0-pyxen\0"),
        (abi.COMPILE_INFO, 144, b"<denied>\0"),
        (abi.CAPABILITIES, 1024, b"xen-3.0-x86_64 "),
        (abi.CHANGESET, 64, b"<denied>\0"),
        (abi.GUEST_HANDLE, 16, bytes(range(16))),
    ],
)
def test_texts_fill_their_buffers_and_no_more(guest: ScriptedGuest, cmd: int, size: int, begins: bytes) -> None:
    address = 0x300000
    guest.memory.write(address, b"\xee" * (size + 1))
    assert guest.call(nr.XEN_VERSION, cmd, address) == 0
    data = guest.memory.read(address, size + 1)
    assert data.startswith(begins)
    assert data[-1] == 0xEE
    assert b"\xee" not in data[:-1]


def test_the_address_space_of_the_hypervisor(guest: ScriptedGuest) -> None:
    address = guest.store(b"\xee" * 16)
    assert guest.call(nr.XEN_VERSION, abi.PLATFORM_PARAMETERS, address) == 0
    expected = (0xFFFF800000000000).to_bytes(8, "little") if guest.bits == 64 else (0xFF800000).to_bytes(4, "little")
    assert guest.memory.read(address, 16) == expected.ljust(16, b"\xee")


def test_features(guest: ScriptedGuest) -> None:
    result, answer = guest.op(nr.XEN_VERSION, abi.GET_FEATURES, abi.FEATURE_INFO, abi.FeatureInfo(0, 0))
    assert (result, answer.submap) == (0, PVH_DOMU)
    result, answer = guest.op(nr.XEN_VERSION, abi.GET_FEATURES, abi.FEATURE_INFO, abi.FeatureInfo(1, 0xEE))
    assert (result, answer.submap) == (-errno.EINVAL, 0xEE)


@pytest.mark.parametrize(
    ("cmd", "arg", "expected"),
    [
        (abi.PAGESIZE, 0, 4096),
        (abi.PAGESIZE, 1, -errno.EINVAL),
        (abi.COMMANDLINE, 0, -errno.EPERM),
        (abi.BUILD_ID, 0, -errno.ENODATA),
        (11, 0, -errno.ENOSYS),
        (0xFFFFFFFF, 0, -errno.ENOSYS),
        *[(cmd, NOWHERE, -errno.EFAULT) for cmd in (1, 2, 3, 4, 5, 6, 8)],
    ],
)
def test_other_questions(guest: ScriptedGuest, cmd: int, arg: int, expected: int) -> None:
    assert guest.call(nr.XEN_VERSION, cmd, arg) == expected


def test_emergency_output(guest: ScriptedGuest) -> None:
    address = 0x300FF8
    guest.memory.write(address, b"hello, world")
    assert guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 12, address) == 0
    assert guest.machine.output == b"hello, world"
    assert guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 0, NOWHERE) == 0
    assert guest.call(nr.CONSOLE_IO, nr.CONSOLE_READ, 12, address) == 0
    assert guest.call(nr.CONSOLE_IO, 2, 12, address) == -errno.ENOSYS
    assert guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 2, SIZE - 1) == -errno.EFAULT
    assert guest.machine.output == b"hello, world"


def test_emergency_output_is_bounded(guest: ScriptedGuest) -> None:
    assert guest.call(nr.CONSOLE_IO, nr.CONSOLE_WRITE, 0xFFFFFFFF, 0x300000) == 0
    assert len(guest.machine.output) == MAX_WRITE


@pytest.mark.parametrize("cmd", [5, 12, 13, 17, 23, 28, 99])
def test_there_are_no_physical_interrupts(guest: ScriptedGuest, cmd: int) -> None:
    assert guest.call(nr.PHYSDEV_OP, cmd, NOWHERE) == -errno.ENOSYS


@pytest.mark.parametrize("number", [nr.PLATFORM_OP, nr.SYSCTL, nr.DOMCTL, nr.DM_OP])
def test_the_tool_stacks_calls_are_not_permitted(guest: ScriptedGuest, number: int) -> None:
    assert guest.call(number, 0, NOWHERE) == -errno.EPERM


@pytest.mark.parametrize(
    "number", [0, 1, 14, 23, 26, nr.XSM_OP, 30, nr.ARGO_OP, nr.XENPMU_OP, nr.HYPFS_OP, 63, 2**64 - 1]
)
def test_the_others_are_not_there(guest: ScriptedGuest, number: int) -> None:
    assert guest.call(number, 0, NOWHERE) == -errno.ENOSYS


def entries(guest: ScriptedGuest, *calls: tuple[int, ...]) -> int:
    empty = (0,) * 8
    packed = [nr.MULTICALL_ENTRY.pack(nr.MulticallEntry(*(*call, *empty)[:8]), guest.bits) for call in calls]
    address = 0x300000
    guest.memory.write(address, b"".join(packed))
    return address


def results(guest: ScriptedGuest, address: int, count: int) -> list[int]:
    size, width = nr.MULTICALL_ENTRY.size(guest.bits), guest.bits // 8
    found = [guest.memory.read(address + index * size + width, width) for index in range(count)]
    return [int.from_bytes(data, "little", signed=True) for data in found]


def test_many_calls_in_one(guest: ScriptedGuest) -> None:
    address = entries(
        guest,
        (nr.XEN_VERSION, 0, abi.VERSION),
        (nr.XEN_VERSION, 0, abi.EXTRAVERSION, 0x7FFFF000),
        (nr.MULTICALL, 0, 0x300000, 1),
        (99, 0),
        (nr.VCPU_OP, 0, 3, 77),
        (nr.DOMCTL, 0),
    )
    assert guest.call(nr.MULTICALL, address, 6) == 0
    expected = [0x00040011, -errno.EFAULT, -errno.ENOSYS, -errno.ENOSYS, -errno.ENOENT, -errno.EPERM]
    assert results(guest, address, 6) == expected


def test_a_list_that_ends_in_nothing_is_a_fault(guest: ScriptedGuest) -> None:
    size = nr.MULTICALL_ENTRY.size(guest.bits)
    address = SIZE - size
    guest.memory.write(address, nr.MULTICALL_ENTRY.pack(nr.MulticallEntry(nr.XEN_VERSION, *(0,) * 7), guest.bits))
    assert guest.call(nr.MULTICALL, address, 2) == -errno.EFAULT
    assert results(guest, address, 1) == [0x00040011]


def test_a_list_has_an_end(guest: ScriptedGuest) -> None:
    assert guest.call(nr.MULTICALL, 0x300000, MAX_CALLS + 1) == -errno.E2BIG
    assert guest.call(nr.MULTICALL, NOWHERE, 0) == 0


def test_a_long_list_lets_others_in(guest: ScriptedGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the back ends and the host's own orders need the lock too."""
    served = threading.Event()

    def other() -> None:
        with guest.domain.lock:
            served.set()

    thread = threading.Thread(target=other)
    guest.machine.console_write = lambda data: thread.start()  # type: ignore[method-assign]
    monkeypatch.setattr("pyxen.hypervisor.domain._LONGEST_HOLD_S", 0.0)
    monkeypatch.setattr("pyxen.hypervisor.domain.time.sleep", lambda seconds: served.wait(30))
    address = entries(guest, (nr.CONSOLE_IO, 0, nr.CONSOLE_WRITE, 1, SCRATCH))
    assert guest.call(nr.MULTICALL, address, 1) == 0
    thread.join()
    assert served.is_set()
    assert results(guest, address, 1) == [0]


def test_structures_may_cross_pages(guest: ScriptedGuest) -> None:
    address = 0x301000 - 3
    guest.memory.write(address, abi.FEATURE_INFO.pack(abi.FeatureInfo(0, 0), 64))
    assert guest.call(nr.XEN_VERSION, abi.GET_FEATURES, address) == 0
    assert abi.FEATURE_INFO.unpack(guest.memory.read(address, 8), 64).submap == PVH_DOMU
    guest.machine.unmapped.add(0x301)
    assert guest.call(nr.XEN_VERSION, abi.GET_FEATURES, address) == -errno.EFAULT


def test_a_32_bit_caller_has_32_bit_registers() -> None:
    guest = ScriptedGuest(bits=32)
    address = guest.store(bytes(16))
    assert guest.call(nr.XEN_VERSION, abi.EXTRAVERSION, 0xFFFFFFFF_00000000 | address) == 0
