"""Where the kernel shows its devices; tests make a tree of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostTree:
    """The folders in which the kernel says what there is, and in which it is told what to do."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    share: Path = Path("/usr/share")

    def write(self, path: Path, text: str) -> None:
        """Tell the kernel something. Raises OSError."""
        with path.open("w") as file:
            file.write(text)


def read(path: Path) -> str:
    """A file's text without the line break at its end; empty if there is none or it can't be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def read_number(path: Path, base: int = 16) -> int:
    """The number in a file; 0 if there is none."""
    try:
        return int(read(path), base)
    except ValueError:
        return 0


def link_name(path: Path) -> str | None:
    """The last part of where a link leads; None if there is no link."""
    return path.resolve().name if path.is_symlink() else None


def uses(tree: HostTree, device: Path) -> str:
    """What this host does with a device now, as ``disk sda1 is mounted on /``; empty if it could do without it."""
    place = device.resolve()
    for entry in _below(tree, "net", place):
        if read_number(entry / "flags") & 1:  # IFF_UP, linux/if.h
            return f"network interface {entry.name} is up"
    mounts = _mounts(tree)
    swaps = read(tree.proc / "swaps")
    for entry in _below(tree, "block", place):
        for key in (read(entry / "dev"), f"/dev/{entry.name}"):
            if key in mounts:
                return f"disk {entry.name} is mounted on {mounts[key]}"
        if f"/dev/{entry.name} " in swaps:
            return f"disk {entry.name} is used to swap"
        if holder := next(iter(sorted((entry / "holders").glob("*"))), None):
            return f"disk {entry.name} is a part of {holder.name}"
    return ""


def _below(tree: HostTree, kind: str, place: Path) -> Iterator[Path]:
    """The network interfaces or disks that lie below a device, partitions as well."""
    for entry in sorted((tree.sys / "class" / kind).glob("*")):
        if place in entry.resolve().parents:
            yield entry


def _mounts(tree: HostTree) -> dict[str, str]:
    """Where the host has mounted what: by MAJOR:MINOR and by the device's path (proc(5), mountinfo)."""
    found: dict[str, str] = {}
    text = read(tree.proc / "1" / "mountinfo") or read(tree.proc / "self" / "mountinfo")
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        words, source = before.split(), after.split()
        if len(words) > 4 and len(source) > 1:
            found.setdefault(words[2], words[4])
            found.setdefault(source[1], words[4])
    return found
