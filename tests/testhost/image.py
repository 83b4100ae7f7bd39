"""The RAM disk of the test host: two archives one after the other, what seldom changes and what is being worked on.

Both are made again only where something in them has changed. Python's byte code is compiled here, since that is slow
in there; it is marked as never to be checked, so the files' times don't matter.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import ParamSpec, TypeVar

from packaging.requirements import Requirement

from pyxen.image import debs, ramdisk
from pyxen.image.cpio import Archive
from pyxen.image.debs import KernelFiles

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PYXEN_TEST_CACHE", ROOT / "build")) / "testhost"
_INIT = Path(__file__).with_name("init")
_MODULES = ("virtio_pci", "virtio_console", "kvm", "kvm_amd", "tun", "bridge", "veth")
_PROGRAMS = ("passt", "passt.avx2", "qemu-system-x86_64", "qemu-img", "setpriv", "mkfs.ext4")
"""Host programs that xend and the tests call, besides busybox's; those that are not installed are left out."""
_PACKAGES = ("pyxen", "pytest", "pytest-timeout", "hypothesis", "anyio", "pexpect")
_SITE = "site"
_VERSION = 7


def _alone(make: Callable[P, T]) -> Callable[P, T]:
    """One process at a time, of those that share a cache: what is made is there for the others."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        BUILD.mkdir(parents=True, exist_ok=True)
        with (BUILD / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            return make(*args, **kwargs)

    return made


@_alone
def kernel() -> KernelFiles:
    """The host's kernel and modules, fetched once."""
    folder = BUILD / "kernel"
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "kernel.json"
    source = debs.find()
    if note.exists() and json.loads(note.read_text()) == [source.identity]:
        unpacked = debs.KernelSource(source.identity, release=_release(folder))
        return debs.fetch(unpacked, folder, root=folder / "kernel")
    files = debs.fetch(source, folder)
    if source.package:
        note.write_text(json.dumps([source.identity]))
    return files


@_alone
def kernel_32() -> tuple[KernelFiles, bytes]:
    """Debian's 32-bit PAE kernel and a busybox for it, fetched once."""
    folder = BUILD / "i386"
    folder.mkdir(parents=True, exist_ok=True)
    lists = debs.Lists("i386", folder / "apt")
    root, done = folder / "kernel", folder / "done"
    if not done.exists():
        debs.unpack("busybox-static", folder, root, lists=lists)
        debs.fetch(debs.find_package("linux-image-686-pae", lists), folder, lists=lists)
        done.touch()
    files = debs.fetch(debs.KernelSource("", release=_release(folder)), folder, root=root)
    return files, ramdisk.without_cursor_query((root / "bin" / "busybox").read_bytes())


def _release(folder: Path) -> str:
    return next((folder / "kernel" / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")


@_alone
def base(kernel: KernelFiles) -> Path:
    """The archive with Python, packages, busybox and modules."""
    key = digest([_VERSION, sys.version, str(kernel.vmlinuz), _INIT.read_text(), sorted(_versions().items())])
    path = BUILD / f"base-{key}.cpio"
    if path.exists():
        return path
    archive = Archive()
    for folder in ("dev", "etc", "proc", "sys", "tmp", "run", "root", "mnt", "sbin"):
        archive.folder(folder)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", _INIT.read_bytes(), 0o755)
    archive.file("bin/busybox", ramdisk.busybox(), 0o755)
    archive.symlink("bin/sh", "/bin/busybox")
    ramdisk.add_modules(archive, kernel.modules, _MODULES)
    archive.file("etc/modules", "".join(f"{each}\n" for each in _order(kernel)).encode())
    _add_python(archive)
    _add_programs(archive)
    write(path, archive.pack())
    for old in BUILD.glob("base-*.cpio"):
        if old != path:
            old.unlink()
    return path


def sources(extra: dict[str, Path], command: list[str], environ: dict[str, str]) -> bytes:
    """The archive with this checkout's code, ``extra`` files by their paths in the host, and the command."""
    archive = Archive()
    for top in ("src", "tests"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                _add_file(archive, f"pyxen/{path.relative_to(ROOT)}", path)
    archive.file("pyxen/pyproject.toml", (ROOT / "pyproject.toml").read_bytes())
    for place, path in extra.items():
        archive.file(place.lstrip("/"), path.read_bytes(), path.stat().st_mode & 0o777)
    words = ["export " + _quote(f"{name}={value}") for name, value in environ.items()]
    archive.file("command", "\n".join([*words, "exec " + " ".join(map(_quote, command))]).encode())
    return archive.pack()


def _order(kernel: KernelFiles) -> list[str]:
    names = [name for name in _MODULES if name in kernel.modules]
    return [module.name for module in kernel.modules.closure(names)]


def _add_python(archive: Archive) -> None:
    """The interpreter with its library at the paths that they have here, and the packages below /site."""
    interpreter = Path(sys.executable).resolve()
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idlelib", "tkinter", "ensurepip", "site-packages", "lib2to3", "turtledemo"}
    needed = [interpreter]
    archive.file(str(interpreter).lstrip("/"), interpreter.read_bytes(), 0o755)
    archive.symlink("bin/python", str(interpreter))
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        if path.is_file() and not skipped & set(inside.parts) and not inside.parts[0].startswith("config-"):
            if path.suffix in (".py", ".so"):
                _add_file(archive, str(path).lstrip("/"), path)
            needed += [path] if path.suffix == ".so" else []
    for path, place in _package_files():
        _add_file(archive, place, path)
        needed += [path] if ".so" in path.suffixes else []
    for found in sorted(libraries(needed)):
        archive.file(str(found).lstrip("/"), found.read_bytes(), 0o755)


def _add_programs(archive: Archive) -> None:
    """Host programs with their libraries, and xm and xend beside "python", where a user would have them."""
    found = [Path(place) for place in map(shutil.which, _PROGRAMS) if place is not None]
    for program in found:
        archive.file(f"usr/bin/{program.name}", program.read_bytes(), 0o755)
    for library in sorted(libraries(found)):
        archive.file(str(library).lstrip("/"), library.read_bytes(), 0o755)
    for module in sorted(Path("/usr/lib").glob("*/qemu/accel-tcg-x86_64.so")):
        archive.file(str(module).lstrip("/"), module.read_bytes(), 0o755)
    archive.symlink("usr/bin/env", "/bin/busybox")
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    for name in ("xm", "xend"):
        words = f"#!/bin/python\nimport sys\nfrom pyxen.{name}.__main__ import main\nsys.exit(main())\n"
        archive.file(f"bin/{name}", words.encode(), 0o755)


def _package_files() -> Iterator[tuple[Path, str]]:
    for name in _versions():
        if name == "pyxen":
            continue
        for file in metadata.distribution(name).files or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                yield path, f"{_SITE}/{file}"


def _versions() -> dict[str, str]:
    """The distributions that the tests need, and those that they need."""
    found: dict[str, str] = {}
    waiting = list(_PACKAGES)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def _add_file(archive: Archive, place: str, path: Path) -> None:
    archive.file(place, path.read_bytes(), 0o755 if path.suffix == ".so" else 0o644)
    if path.suffix != ".py":
        return
    code = BUILD / "code" / sys.implementation.cache_tag / str(path).lstrip("/")
    if not code.exists() or code.stat().st_mtime_ns <= path.stat().st_mtime_ns:
        code.parent.mkdir(parents=True, exist_ok=True)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        try:
            py_compile.compile(str(path), cfile=str(code), dfile=f"/{place}", doraise=True, invalidation_mode=mode)
        except py_compile.PyCompileError:  # a file that is meant to be wrong
            return
    folder, _, name = place.rpartition("/")
    cached = f"{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
    archive.file(f"{folder}/__pycache__/{cached}", code.read_bytes())


def libraries(files: list[Path]) -> set[Path]:
    """The shared libraries that these files need, at the paths where the loader looks for them."""
    said = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False).stdout
    return {Path(match) for match in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}


def _quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def digest(facts: list[object]) -> str:
    """A name for what these facts decide."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def write(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
