"""States of domains whose machine is plain Python: written, read into another domain, damaged in all ways."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxen.abi import hvm
from pyxen.errors import InvalidRequest, PyxenError, Unsupported
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.memory import GuestMemory, Region
from pyxen.hypervisor.state import load, save, sections
from pyxen.hypervisor.state.sending import Sending
from pyxen.hypervisor.state.words import Cpu, Frames, pack
from tests.unit.hypervisor.hypercalls.scripted import OUTSIDE, PAGE, FakeMachine

_SIZE = 2 << 20
_FRONT = 32


def _domain(vcpus: int = 2, size: int = _SIZE, domid: int = 7) -> Domain:
    memory = GuestMemory.anonymous(size)
    machine = FakeMachine(memory, vcpus)
    return Domain(memory, machine, domid=domid, vcpus=vcpus, memory_map=[(0, size, 1)])


def _cpu(index: int) -> Cpu:
    blob = bytes([index + 1]) * 144
    return Cpu(
        index=index, up=True, held=False, cpuid=[], regs=blob, sregs=blob, xsave=blob, xcrs=blob, debug=blob,
        lapic=blob, events=blob, mp_state=0, msrs=[(0x174, 2**64 - 1)], tsc=2**64 - 1,
    )  # fmt: skip


def _lived_in() -> Domain:
    """A domain with something in all that is saved."""
    domain = _domain()
    domain.memory.write(5 * PAGE, b"\x05" * PAGE)
    domain.memory.write(100 * PAGE + 17, b"in the middle of a page")
    domain.memory.write(_SIZE - 1, b"\xff")
    domain.machine.map_frame(OUTSIDE + 3)
    domain.memory.write((OUTSIDE + 3) * PAGE, b"a page of Xen's")
    domain.reservation.remove(9)
    domain.reservation.remove(511)
    domain.reservation.maximum = 512
    domain.runstate_update_flag = True
    domain.vcpus[1].initialised = True
    domain.params[hvm.PARAM_X87_FIP_WIDTH] = 8
    domain.params[hvm.PARAM_STORE_EVTCHN] = 77
    return domain


def _flow(write: Callable[[int], object]) -> int:
    """What comes out where ``write`` writes; the descriptor to read from."""
    out, into = os.pipe()

    def run() -> None:
        try:
            write(into)
        except BrokenPipeError:
            pass
        finally:
            os.close(into)

    threading.Thread(target=run).start()
    return out


def _saved(domain: Domain, cpus: int = 2) -> bytes:
    out = _flow(lambda fd: _save(fd, domain, cpus))
    with os.fdopen(out, "rb") as file:
        return file.read()


def _save(fd: int, domain: Domain, cpus: int = 2) -> None:
    sending = Sending(fd, domain, NotLogged())
    try:
        xen = save.describe(domain, system_time=123, tsc_khz=2_000_000)
        sending.finish(xen, [_cpu(index) for index in range(cpus)])
    finally:
        sending.close()


class NotLogged:
    """A machine whose guest stands still."""

    tsc_khz = 2_000_000

    def log_writes(self, region: Region, on: bool) -> None:
        raise AssertionError

    def written(self, region: Region) -> int:
        raise AssertionError

    def throttle(self, share: float) -> None:
        assert not share


def _load(data: bytes, domain: Domain) -> tuple[object, list[Cpu]]:
    out = _flow(lambda fd: os.writev(fd, [data]) if len(data) < 65536 else _write_all(fd, data))
    try:
        xen, cpus = load.read(out, domain, lambda khz: None)
        load.apply(xen, domain)
        return xen, cpus
    finally:
        os.close(out)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


_STATE = _saved(_lived_in())


def test_a_domain_finds_what_another_had() -> None:
    before, after = _lived_in(), _domain(domid=8)
    _, cpus = _load(_STATE, after)
    assert [(r.start, bytes(r.data)) for r in after.memory.regions] == [
        (r.start, bytes(r.data)) for r in before.memory.regions
    ]
    assert cpus == [_cpu(0), _cpu(1)]
    assert (after.reservation.current, after.reservation.maximum) == (510, 512)
    assert not after.reservation.is_present(9)
    assert after.reservation.is_present(10)
    assert after.runstate_update_flag
    assert [vcpu.initialised for vcpu in after.vcpus] == [True, True]
    assert after.params[hvm.PARAM_X87_FIP_WIDTH] == 8
    assert after.params[hvm.PARAM_STORE_EVTCHN] == 0, "ports are the new domain's"


def test_a_restored_guests_channels_have_numbers_that_it_had_not_before() -> None:
    before, after = _domain(), _domain()
    old = [before.evtchn.alloc_unbound() for _ in range(30)]
    given = after.evtchn.alloc_unbound()
    assert given == old[0], "what the tool stack makes has the same number"
    _load(_saved(before), after)
    assert after.evtchn.alloc_unbound() == old[-1] + 1
    assert after.evtchn.get(old[-1]) is None
    again = _domain()
    for _ in range(3000):  # the next time they begin again below these
        after.evtchn.alloc_unbound()
    _load(_saved(after), again)
    assert again.evtchn.alloc_unbound() == old[0]


def test_pages_of_zeros_are_left_out() -> None:
    assert len(_STATE) < 8 * PAGE


def test_another_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a guest with 2 VCPUs, the domain has 1"):
        _load(_STATE, _domain(vcpus=1))
    with pytest.raises(InvalidRequest, match="2048 KiB of memory, the domain has 1024"):
        _load(_STATE, _domain(size=1 << 20))


def test_another_frequency_is_looked_at_before_memory_comes() -> None:
    def refuse(khz: int) -> None:
        raise Unsupported(f"{khz} kHz")

    out = _flow(lambda fd: os.write(fd, _STATE[: _STATE.index(sections.FRAMES)]))
    try:
        with pytest.raises(Unsupported, match="2000000 kHz"):
            load.read(out, _domain(), refuse)
    finally:
        os.close(out)


def test_a_newer_format_is_refused_by_name() -> None:
    newer = _STATE[:16] + b"\x02" + _STATE[17:]
    with pytest.raises(InvalidRequest, match="format 2, and this pyxen reads format 1"):
        _load(newer, _domain())


def test_what_is_cut_off_is_refused() -> None:
    for length in (0, 1, _FRONT - 1, _FRONT, _FRONT + 5, len(_STATE) // 2, len(_STATE) - 1):
        with pytest.raises(InvalidRequest, match="damaged"):
            _load(_STATE[:length], _domain())


def test_a_section_that_is_missing_is_noticed() -> None:
    start = _STATE.index(sections.PAGES)
    end = _STATE.index(sections.PAGES, start + 1)
    with pytest.raises(InvalidRequest, match="sections of it are missing"):
        _load(_STATE[:start] + _STATE[end:], _domain())


@given(st.integers(0, len(_STATE) - 1), st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_no_changed_byte_goes_unnoticed(place: int, change: int) -> None:
    data = bytearray(_STATE)
    data[place] ^= change
    if 20 <= place < _FRONT:  # zeros that are not looked at
        _load(bytes(data), _domain())
        return
    with pytest.raises(InvalidRequest):
        _load(bytes(data), _domain())


def _section(kind: bytes, contents: bytes) -> bytes:
    return (
        kind
        + zlib.crc32(contents, zlib.crc32(kind)).to_bytes(4, "little")
        + len(contents).to_bytes(8, "little")
        + contents
    )


_KINDS = st.sampled_from(
    [sections.HEAD, sections.FRAMES, sections.PAGES, sections.XEN, sections.CPU, sections.DONE, b"????"]
)
_CONTENTS = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda gfn: pack(Frames(gfns=[gfn])), st.integers(0, 2**64 - 1)),
    st.builds(lambda at: at.to_bytes(8, "little") + bytes(PAGE), st.integers(0, 2**64 - 1)),
)


@given(st.lists(st.builds(_section, _KINDS, _CONTENTS), max_size=6))
@settings(deadline=None, max_examples=200)
def test_any_other_sections_are_refused(extra: list[bytes]) -> None:
    """Whole sections with right checksums, of any contents, after a proper head."""
    head = _STATE[: _STATE.index(sections.FRAMES)]
    with pytest.raises(PyxenError):
        _load(head + b"".join(extra), _domain())


def test_a_reader_that_goes_away_fails_the_writer() -> None:
    out, into = os.pipe()
    os.close(out)
    domain = _lived_in()
    try:
        with pytest.raises(BrokenPipeError):
            _save(into, domain)
    finally:
        os.close(into)
