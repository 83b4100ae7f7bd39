"""Kernels of every packing are unpacked; nothing else is taken for one."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path

import msgspec
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxen.errors import ConfigError, PyxenError, ResourceExhausted
from pyxen.image import elf, kernel
from pyxen.image.kernel import Kernel, unpack
from tests.unit.image.kernels import ENTRY, PACKERS, RELEASE, bzimage, payload, vmlinux

FORMS = sorted(PACKERS)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def write(tmp_path: Path, data: bytes, name: str = "vmlinuz") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def check_loaded(found: Kernel, original: bytes) -> None:
    """By pyelftools' account what is in the cache puts the same bytes to the same addresses."""
    with found.vmlinux.open("rb") as file:
        unpacked, packed = ELFFile(file), ELFFile(io.BytesIO(original))
        rows = [(s.header.p_type, s.header.p_paddr, s.header.p_memsz) for s in unpacked.iter_segments()]
        assert rows == [(s.header.p_type, s.header.p_paddr, s.header.p_memsz) for s in packed.iter_segments()]
        for new, old in zip(unpacked.iter_segments("PT_LOAD"), packed.iter_segments("PT_LOAD"), strict=True):
            assert new.data() == old.data()[: len(new.data())]
            assert not old.data()[len(new.data()) :].strip(b"\x00")
            assert len(new.data()) < len(old.data())
            assert new.header.p_offset % 4096 == old.header.p_offset % 4096
        new_note, old_note = (next(each.iter_segments("PT_NOTE")) for each in (unpacked, packed))
        assert isinstance(new_note, NoteSegment)
        assert isinstance(old_note, NoteSegment)
        assert [(n.n_name, n.n_descdata) for n in new_note.iter_notes()] == [
            (n.n_name, n.n_descdata) for n in old_note.iter_notes()
        ]
        assert unpacked.num_sections() == 0


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("form", FORMS)
def test_bzimage(tmp_path: Path, cache: Path, form: str, bits: int) -> None:
    original = vmlinux(bits=bits)
    found = unpack(write(tmp_path, bzimage(payload(form, original))), cache)
    assert (found.release, found.bits, found.pvh_entry, found.compression) == (RELEASE, bits, ENTRY, form)
    check_loaded(found, original)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "lz4"])  # its frames do not say where they end
def test_old_boot_protocol_is_searched(tmp_path: Path, cache: Path, form: str) -> None:
    found = unpack(write(tmp_path, bzimage(payload(form, vmlinux()), version=0x207, release="")), cache)
    assert (found.release, found.compression) == (RELEASE, form)


def test_uncompressed_payload(tmp_path: Path, cache: Path) -> None:
    original = vmlinux()
    found = unpack(write(tmp_path, bzimage(original)), cache)
    assert found.compression == "none"
    check_loaded(found, original)


@pytest.mark.parametrize("form", ["none", *FORMS])
def test_vmlinux(tmp_path: Path, cache: Path, form: str) -> None:
    original = vmlinux()
    found = unpack(write(tmp_path, original if form == "none" else PACKERS[form](original)), cache)
    assert (found.release, found.compression, found.pvh_entry) == (RELEASE, form, ENTRY)
    check_loaded(found, original)


def test_several_lz4_blocks(tmp_path: Path, cache: Path) -> None:
    large = vmlinux() + os.urandom(9 << 20)
    assert unpack(write(tmp_path, bzimage(payload("lz4", large))), cache).release == RELEASE


def test_no_pvh_entry(tmp_path: Path, cache: Path) -> None:
    assert unpack(write(tmp_path, vmlinux(pvh=False)), cache).pvh_entry is None


def test_cache_is_readable_by_everyone(tmp_path: Path, cache: Path) -> None:
    old = os.umask(0o077)
    try:
        found = unpack(write(tmp_path, vmlinux()), cache)
    finally:
        os.umask(old)
    assert found.vmlinux.stat().st_mode & 0o777 == 0o644
    assert cache.stat().st_mode & 0o777 == 0o755


def test_second_time_reads_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, bzimage(payload("gzip", vmlinux())))
    first = unpack(path, cache)
    monkeypatch.setattr(kernel, "inspect", lambda data, path: pytest.fail("unpacked again"))
    monkeypatch.setattr(kernel, "_name", _names_only(kernel._name))
    assert unpack(path, cache) == first


def _names_only(name: object) -> object:
    def checked(*parts: bytes) -> str:
        assert len(parts) == 1, "the contents were hashed again"
        return name(*parts)  # type: ignore[no-any-return, operator]

    return checked


def test_same_contents_share_one_entry(tmp_path: Path, cache: Path) -> None:
    data = vmlinux()
    assert unpack(write(tmp_path, data, "a"), cache) == unpack(write(tmp_path, data, "b"), cache)
    assert len(list(cache.glob("*.vmlinux"))) == 1


def test_changed_file_is_unpacked_again(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, vmlinux())
    unpack(path, cache)
    status = path.stat()
    changed = vmlinux(bits=32)
    path.write_bytes(changed.ljust(status.st_size, b"\x00"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert unpack(path, cache).bits == 32


@pytest.mark.parametrize("damage", ["remove", "cut", "forget", "nonsense"])
def test_damaged_cache_heals(tmp_path: Path, cache: Path, damage: str) -> None:
    path = write(tmp_path, vmlinux())
    found = unpack(path, cache)
    contents = found.vmlinux.read_bytes()
    match damage:
        case "remove":
            found.vmlinux.unlink()
        case "cut":
            os.truncate(found.vmlinux, 100)
        case "forget":
            found.vmlinux.with_suffix(".json").unlink()
        case "nonsense":
            for record in cache.rglob("*.json"):
                record.write_bytes(b"{")
    assert unpack(path, cache) == found
    assert found.vmlinux.read_bytes() == contents


def test_two_at_once(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, bzimage(payload("xz", vmlinux())))
    found: list[Kernel] = []
    threads = [threading.Thread(target=lambda: found.append(unpack(path, cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert not list(cache.rglob(".*")), "temporary files are left"


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\x00" * 16, "neither a bzImage nor an ELF"),
        (b"\x7fELF", "not an ELF"),
        (b"\x7fELF" + bytes(12), "not an ELF"),
        (b"#!/bin/sh\necho hello\n", "neither a bzImage nor an ELF"),
        (vmlinux(machine=183), "another machine (arm64)"),
        (vmlinux(kind=1), "can't be run"),
        (vmlinux()[:5000], "cut off"),
        (b"MZ".ljust(56, b"\x00") + b"ARM\x64" + bytes(100), "arm64"),
        (PACKERS["gzip"](bytes(56) + b"ARM\x64" + bytes(100)), "arm64"),
        (PACKERS["gzip"](b"a text"), "not an ELF"),
        (PACKERS["gzip"](vmlinux())[:-20], "gzip data are cut off"),
        (cut(bzimage(payload("lz4", vmlinux()))), "cut off"),
        (bzimage(payload("lz4", vmlinux()))[:600], "cut off in its setup code"),
        (bzimage(b"something else"), "packed in an unknown way"),
        (bzimage(b"\x89LZO\x00\r\n\x1a\n" + bytes(64)), "LZO"),
        (bzimage(payload("zstd", vmlinux())[:-4] + b"\x01\x00\x00\x00"), "damaged"),
        (bzimage(b"nothing at all" * 10, version=0x204), "no packed kernel was found"),
    ],
)
def test_not_a_kernel(tmp_path: Path, cache: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(ConfigError) as caught:
        unpack(path, cache)
    assert str(caught.value).startswith(f"{path} is not a kernel: ")
    assert reason in str(caught.value)
    assert caught.value.key == "kernel"
    assert not cache.exists()


def test_folder_and_missing_file(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="it is a folder"):
        unpack(tmp_path, cache)
    with pytest.raises(ConfigError, match=r"cannot read kernel .*/none: No such file"):
        unpack(tmp_path / "none", cache)


def test_fifo_does_not_block(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        unpack(tmp_path / "fifo", cache)


def test_unreadable(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path, vmlinux())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=r"cannot read kernel .*: Permission denied"):
            unpack(path, cache)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("form", FORMS)
def test_bomb(tmp_path: Path, cache: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "MOST_BYTES", 4 << 20)
    data = bzimage(payload(form, vmlinux() + bytes(40 << 20)))
    with pytest.raises(ConfigError, match="unpacks to more than 4 MiB"):
        unpack(write(tmp_path, data), cache)


def test_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyxen.image.files.os.write", full)
    with pytest.raises(ResourceExhausted, match="no space is left"):
        unpack(write(tmp_path, vmlinux()), cache)
    assert not [each for each in cache.rglob("*") if each.is_file()]


def test_entry_outside_of_the_code() -> None:
    data = vmlinux().replace(ENTRY.to_bytes(8, "little"), (1 << 40).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="lies outside"):
        elf.pvh_entry(elf.parse(data), data)


VALID = [vmlinux(), vmlinux(bits=32), *(bzimage(payload(form, vmlinux())) for form in FORMS)]
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.binary(max_size=2048), start=st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x08", b"BZh9"]))
def test_random_bytes_only_ever_give_a_pyxen_error(data: bytes, start: bytes) -> None:
    with pytest.raises(PyxenError):
        kernel.inspect(start + data, Path("fuzz"))


@fuzz
@given(data=st.data(), valid=st.sampled_from(VALID))
def test_mutated_kernels_only_ever_give_a_pyxen_error(data: st.DataObject, valid: bytes) -> None:
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 8))):
        # Headers are where a change matters most.
        position = data.draw(st.one_of(st.integers(0, 200), st.integers(0x1F0, 0x260), st.integers(0, len(valid) - 1)))
        mutated[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(mutated)), st.integers(0, len(mutated))))
    with contextlib.suppress(PyxenError):
        found = kernel.inspect(bytes(mutated[:end]), Path("fuzz"))
        elf.loadable(found.elf, found.data)
        msgspec.json.encode(found.release)
