"""Disk specifications, as xm and xl write them.

file:/srv/a.img,xvda,w                                        xm: KIND:TARGET,VDEV,ACCESS
phy:vg0/web,xvda,w    tap:qcow2:/srv/a.qcow2,xvda,w           the same for devices and other formats
file:/cd.iso,hdc:cdrom,r                                      a CD-ROM drive; ``,hdc:cdrom,r`` is an empty one
/srv/a.img,raw,xvda,rw                                        xl: TARGET,FORMAT,VDEV,ACCESS[,OPTION…]
format=qcow2,vdev=xvda,access=rw,target=/srv/a,b.qcow2        xl: by name; target= last may hold commas
/srv/a.img,raw,xvda,rw,rate=10MB/s,iops=200                   no more than so much each second
"""

from __future__ import annotations

import re
from pathlib import Path

from pyxen.config.model import VDEV_PATTERN, Disk, DiskAccess, DiskFormat, DiskType
from pyxen.config.sizes import parse_rate
from pyxen.config.words import absolute, cut, refuse, shown, unknown
from pyxen.errors import ConfigError

_HINT = "write 'file:/srv/web.img,xvda,w' or 'format=qcow2,vdev=xvda,access=rw,target=/srv/web.qcow2'"

_ACCESS = {
    "": DiskAccess.WRITE,
    "r": DiskAccess.READ,
    "ro": DiskAccess.READ,
    "w": DiskAccess.WRITE,
    "rw": DiskAccess.WRITE,
    "w!": DiskAccess.WRITE_SHARED,
    "rw!": DiskAccess.WRITE_SHARED,
    "!": DiskAccess.WRITE_SHARED,
}
_FORMATS = {"": DiskFormat.AUTO, "auto": DiskFormat.AUTO, "raw": DiskFormat.RAW, "qcow2": DiskFormat.QCOW2}
_TYPES = {str(kind): kind for kind in DiskType}
_OTHER_FORMATS = ("vhd", "vmdk", "qcow", "vdi", "qed", "ram", "remus")

_RAW_PREFIXES = ("file", "phy", "aio", "sync")
_CONTAINERS = ("tap", "tap2", "tapdisk", "ioemu")
_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9-]*):", re.ASCII)
_NAMED = re.compile(r"([a-z][a-z_-]*)=(.*)", re.ASCII | re.DOTALL)
_VDEV = re.compile(VDEV_PATTERN)
_NAMES = ["format", "vdev", "access", "target", "devtype", "rate", "iops", "backendtype", "backend", "script"]
_HINTS_TO_XEN = ("discard", "no-discard", "direct-io-safe")
"""Options that make no difference to what the guest sees."""
_DOMAIN_0 = ("", "0", "Domain-0")
_MAX_PATH = 4096


def parse_disk(text: str, *, base: Path | None = None) -> Disk:
    """The Disk that ``text`` describes; relative targets are below ``base`` (the current folder).

    Raises ConfigError, which says what was expected.
    """
    return _Spec(text).disk(base)


class _Spec:
    """A specification while it is being read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._target: str | None = None
        self._format = DiskFormat.AUTO
        self._vdev: str | None = None
        self._access = DiskAccess.WRITE
        self._type = DiskType.DISK
        self._rate: int | None = None
        self._iops: int | None = None
        if not text.strip():
            raise self._refused("it is empty")
        if "\0" in text or "\n" in text:
            raise self._refused("it holds a control character")
        self._positions(self._named())

    def disk(self, base: Path | None) -> Disk:
        if self._vdev is None:
            raise self._refused("the device's name in the guest is missing")
        target = self._target or ""
        if not target and self._type is DiskType.DISK:
            raise self._refused("the file or device to attach is missing")
        if target:
            target = absolute(target, base)
        if len(target) > _MAX_PATH:
            raise self._refused(f"the path has more than {_MAX_PATH} characters")
        access = DiskAccess.READ if self._type is DiskType.CDROM else self._access
        return Disk(
            vdev=self._vdev,
            target=target,
            format=self._format,
            access=access,
            devtype=self._type,
            rate=self._rate,
            iops=self._iops,
        )

    def _named(self) -> list[str]:
        """Take the options given by name; return the other words."""
        positions: list[str] = []
        rest: str | None = self._text
        while rest is not None:
            if rest.lstrip().startswith("target="):
                self._target = rest.lstrip().removeprefix("target=")
                break
            word, comma, after = rest.partition(",")
            rest = after if comma else None
            word = word.strip()
            if match := _NAMED.fullmatch(word):
                self._option(match[1], match[2].strip())
            elif word in _TYPES:
                self._type = _TYPES[word]
            elif word not in _HINTS_TO_XEN:
                positions.append(word)
        return positions

    def _option(self, name: str, value: str) -> None:
        match name:
            case "format":
                self._set_format(value)
            case "vdev":
                self._set_vdev(value)
            case "access":
                self._set_access(value)
            case "devtype":
                if value not in _TYPES:
                    raise self._refused(f"devtype {shown(value)} is neither disk nor cdrom")
                self._type = _TYPES[value]
            case "rate":
                try:
                    self._rate = parse_rate(value)
                except ConfigError as error:
                    raise self._refused(error.message) from None
            case "iops":
                if not re.fullmatch(r"[1-9][0-9]{0,8}", value, re.ASCII):
                    raise self._refused(f"iops {shown(value)} is not a number of requests a second")
                self._iops = int(value)
            case "backendtype":
                pass  # which of Xen's back ends serves it; here there is one
            case "backend":
                self._set_backend(value)
            case "script":
                raise self._refused("block scripts are not run by pyxen; attach the device that the script would make")
            case _:
                raise self._refused(unknown("option", name, _NAMES))

    def _positions(self, words: list[str]) -> None:
        """Take TARGET[,FORMAT],VDEV[,ACCESS[,BACKEND[,PROTOCOL]]], less what was given by name."""
        if self._target is not None:
            if any(words):
                raise self._refused(f"with target=, {shown(next(filter(None, words)))} needs its name too")
            return
        if not words:
            return
        self._set_target(words[0])
        rest = words[1:]
        if rest and (rest[0].lower() in _FORMATS or rest[0].lower() in _OTHER_FORMATS):
            self._set_format(rest.pop(0))
        if rest and self._vdev is None:
            self._set_vdev(rest.pop(0))
        if rest:
            self._set_access(rest.pop(0))
        if rest:
            self._set_backend(rest.pop(0))
        if len(rest) > 1:
            raise self._refused(f"there are too many commas: {shown(rest[1])} has no place")

    def _set_target(self, word: str) -> None:
        while match := _PREFIX.match(word):
            prefix, word = match[1], word[match.end() :]
            if prefix in _CONTAINERS:
                continue
            if prefix in _RAW_PREFIXES:
                self._format = DiskFormat.RAW
            elif prefix in _FORMATS or prefix in _OTHER_FORMATS:
                self._set_format(prefix)
            else:
                raise self._refused(f"{cut(prefix)}: is no kind of disk; there are file:, phy: and tap:qcow2:")
            if prefix == "phy" and word and word[0] != "/":
                word = f"/dev/{word}"
            break
        self._target = word

    def _set_format(self, word: str) -> None:
        word = word.lower()
        if word in _OTHER_FORMATS:
            raise ConfigError(
                f"disk {shown(self._text)}: the format {word} is not supported",
                key="disk",
                hint="convert it: qemu-img convert -O qcow2 OLD NEW",
            )
        if word not in _FORMATS:
            raise self._refused(f"{shown(word)} is no format; there are raw, qcow2 and auto")
        self._format = _FORMATS[word] if word else self._format

    def _set_vdev(self, word: str) -> None:
        name, colon, kind = word.removeprefix("ioemu:").removeprefix("/dev/").partition(":")
        if colon:
            if kind not in _TYPES:
                raise self._refused(f"{shown(kind)} after the device is neither disk nor cdrom")
            self._type = _TYPES[kind]
        if not _VDEV.search(name):
            raise self._refused(f"{shown(name)} is no device; expected a name such as xvda, hda, sda or vda")
        self._vdev = name

    def _set_access(self, word: str) -> None:
        if word not in _ACCESS:
            raise self._refused(f"{shown(word)} is no access; there are r, w and w!")
        self._access = _ACCESS[word]

    def _set_backend(self, word: str) -> None:
        if word not in _DOMAIN_0:
            raise self._refused(f"back ends in another domain ({shown(word)}) are not supported")

    def _refused(self, reason: str) -> ConfigError:
        return refuse("disk", self._text, reason, _HINT)
