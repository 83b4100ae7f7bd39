"""Linux kernels: what a file holds, and the ELF executable that a PVH domain starts from.

A kernel comes as a bzImage (Linux, Documentation/arch/x86/boot.rst), as an ELF vmlinux, or as a compressed vmlinux.
Unpacked kernels are cached:

    KERNELS/DIGEST.vmlinux       the segments that are loaded, and no more
    KERNELS/DIGEST.json          what is known of it; written last, so that it vouches for the other
    KERNELS/index/HASH.json      which file (by path, inode, size and times) has which digest

so that a second start of a domain reads neither the packed nor the unpacked file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pyxen.errors import ConfigError, PyxenError
from pyxen.image import compression, elf
from pyxen.image.files import write_file
from pyxen.image.pruning import mark_used

MOST_BYTES: Final = 512 << 20
"""No packed file and no unpacked kernel is larger."""

_CACHE_FORMAT = b"pyxen kernel cache 3\n"
_SETUP_MAGIC = slice(0x202, 0x206)
_RELEASE = re.compile(rb"Linux version (\d[!-~]{0,63}) ")
_MOST_CANDIDATES = 256
_Record = TypeVar("_Record", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel. ``pvh_entry`` is guest-physical; ``release`` is as ``uname -r`` gives it, or empty."""

    vmlinux: Path
    release: str
    bits: int
    pvh_entry: int | None
    compression: str
    """gzip, xz, lzma, lz4, zstd, bzip2, or none."""


class _Facts(msgspec.Struct):
    size: int
    release: str
    bits: int
    pvh_entry: int | None
    compression: str


class _Seen(msgspec.Struct):
    path: str
    identity: tuple[int, int, int, int, int]
    digest: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """What :func:`inspect` found in the bytes of a kernel file."""

    release: str
    compression: str
    elf: elf.Elf
    pvh_entry: int | None
    data: bytes | memoryview


def unpack(path: Path, cache: Path) -> Kernel:
    """The kernel in ``path``, unpacked into ``cache`` unless it is there. Blocks; safe to call twice at once.

    Raises ConfigError (of key ``kernel``) if ``path`` can't be read or is no x86 kernel.
    """
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None
    if (before := _known(real, found, cache)) is not None:
        return before
    if not stat.S_ISREG(found.st_mode):
        raise _not_a_kernel(path, "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is not a regular file")
    try:
        with real.open("rb") as file:
            # The identity of what is read, should the name come to mean another file meanwhile.
            found = os.fstat(file.fileno())
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    digest = _name(_CACHE_FORMAT, data)
    kernel = _cached(cache, digest) or _store(cache, digest, inspect(data, path))
    if found.st_size == len(data):
        _write(_index(real, cache), _Seen(str(real), _identity(found), digest))
    return kernel


def known(path: Path, cache: Path) -> Kernel | None:
    """The same, only if that file has been unpacked before: quick. None, too, if it can't be read."""
    try:
        real = path.resolve(strict=True)
        return _known(real, real.stat(), cache)
    except (OSError, RuntimeError, ValueError):
        return None


def _known(real: Path, found: os.stat_result, cache: Path) -> Kernel | None:
    seen = _read(_index(real, cache), _Seen)
    if seen is None or (seen.path, seen.identity) != (str(real), _identity(found)):
        return None
    return _cached(cache, seen.digest)


def _index(real: Path, cache: Path) -> Path:
    return cache / "index" / f"{_name(os.fsencode(real))}.json"


def inspect(data: bytes, path: Path) -> Inspected:
    """Find the kernel in the contents of a file; ``path`` is for the messages. Raises ConfigError."""
    try:
        form, vmlinux, release = _find(data)
        header = elf.parse(vmlinux)
        entry = elf.pvh_entry(header, vmlinux)
    except ValueError as error:
        raise _not_a_kernel(path, str(error)) from error
    if not release:
        match = _RELEASE.search(vmlinux)
        release = match[1].decode("ascii") if match else ""
    return Inspected(release, form, header, entry, vmlinux)


def _find(data: bytes) -> tuple[str, bytes, str]:
    """The form of packing, the ELF file inside, and the release if a setup header gives it."""
    if not data:
        raise ValueError("it is empty")
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    if data[_SETUP_MAGIC] == b"HdrS":
        form, vmlinux = _payload(data)
        return form, vmlinux, _setup_release(data)
    if data[:4] == b"\x7fELF":
        return "none", data, ""
    if form_found := compression.detect(data):
        vmlinux = compression.decompress(form_found, data, MOST_BYTES)
        _refuse_arm(vmlinux)
        return form_found, vmlinux, ""
    _refuse_arm(data)
    raise ValueError("it is neither a bzImage nor an ELF file")


def _refuse_arm(data: bytes) -> None:
    if data[56:60] == b"ARM\x64":
        raise ValueError("it is for another machine (arm64), not x86")


def _payload(data: bytes) -> tuple[str, bytes]:
    """Unpack the ELF file of a bzImage. Its place is in the setup header since boot protocol 2.08."""
    setup_size = ((data[0x1F1] or 4) + 1) * 512
    if len(data) < 0x250 or len(data) <= setup_size:
        raise ValueError("it is a bzImage that is cut off in its setup code")
    version = int.from_bytes(data[0x206:0x208], "little")
    start = setup_size + int.from_bytes(data[0x248:0x24C], "little")
    length = int.from_bytes(data[0x24C:0x250], "little")
    if version < 0x208 or not length:
        return _scan(data, setup_size)
    if start + length > len(data):
        raise ValueError(f"it is a bzImage that is cut off: {start + length} bytes are expected, {len(data)} are there")
    payload = memoryview(data)[start : start + length]
    if bytes(payload[:4]) == b"\x7fELF":
        return "none", bytes(payload)
    form = compression.detect(payload)
    if form is None:
        raise ValueError("it is a bzImage whose payload is packed in an unknown way")
    vmlinux = compression.decompress(form, payload, MOST_BYTES)
    expected = int.from_bytes(payload[-4:], "little")
    if len(vmlinux) != expected:
        raise ValueError(f"it is damaged: {len(vmlinux)} bytes were unpacked where {expected} were packed")
    return form, vmlinux


def _scan(data: bytes, start: int) -> tuple[str, bytes]:
    """Unpack the first stream after ``start`` that holds an ELF file."""
    for form, position in _candidates(data, start):
        payload = memoryview(data)[position:]
        try:
            if compression.peek(form, payload, 4) == b"\x7fELF":
                return form, compression.decompress(form, payload, MOST_BYTES)
        except ValueError:
            continue
    raise ValueError("it is a bzImage in which no packed kernel was found")


def _candidates(data: bytes, start: int) -> Iterator[tuple[str, int]]:
    for form, magic in compression.MAGICS.items():
        position = data.find(magic, start)
        for _ in range(_MOST_CANDIDATES):
            if position < 0:
                break
            yield form, position
            position = data.find(magic, position + 1)


def _setup_release(data: bytes) -> str:
    """The first word of the version text that the setup header points to."""
    start = int.from_bytes(data[0x20E:0x210], "little") + 0x200
    text = data[start : start + 64].split(b"\x00")[0].split(b" ")[0]
    return text.decode("ascii") if start > 0x200 and re.fullmatch(rb"\d[!-~]*", text) else ""


def _store(cache: Path, digest: str, found: Inspected) -> Kernel:
    pieces = elf.loadable(found.elf, found.data)
    write_file(cache / f"{digest}.vmlinux", pieces)
    facts = _Facts(sum(map(len, pieces)), found.release, found.elf.bits, found.pvh_entry, found.compression)
    _write(cache / f"{digest}.json", facts)
    return _kernel(cache, digest, facts)


def _cached(cache: Path, digest: str) -> Kernel | None:
    facts = _read(cache / f"{digest}.json", _Facts)
    if facts is None:
        return None
    try:
        whole = (cache / f"{digest}.vmlinux").stat().st_size == facts.size
    except OSError:
        return None
    if not whole:
        return None
    mark_used(cache / f"{digest}.json")
    return _kernel(cache, digest, facts)


def _kernel(cache: Path, digest: str, facts: _Facts) -> Kernel:
    return Kernel(cache / f"{digest}.vmlinux", facts.release, facts.bits, facts.pvh_entry, facts.compression)


def _identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _name(*parts: bytes) -> str:
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:40]


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    """A record of the cache, or None if there is none that can be understood."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def _write(path: Path, record: msgspec.Struct) -> None:
    write_file(path, [msgspec.json.encode(record)])


def _unreadable(path: Path, error: Exception) -> PyxenError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(f"cannot read kernel {path}: {reason}", key="kernel")


def _not_a_kernel(path: Path, reason: str) -> PyxenError:
    return ConfigError(
        f"{path} is not a kernel: {reason}", key="kernel", hint="Give a bzImage (vmlinuz) or a vmlinux for x86."
    )
