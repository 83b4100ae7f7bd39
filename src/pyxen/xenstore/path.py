"""Paths: checked once on the way in, tuples of names inside."""

from __future__ import annotations

import re
import sys

from pyxen.abi.xs_wire import ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX, Error
from pyxen.xenstore.errors import XsError

Path = tuple[str, ...]
"""Names from the root down; () is the root."""

SPECIAL = {"@introduceDomain": ("@introduceDomain",), "@releaseDomain": ("@releaseDomain",)}
"""Not nodes: things that can be watched. No node of the same name can be written."""

_NAMES = re.compile(rb"(?:/[A-Za-z0-9\-_@]+)+")


def home(domid: int) -> Path:
    """Where a domain's relative paths start."""
    return ("local", "domain", str(domid))


def parse(raw: bytes, domid: int) -> Path:
    """The path that a domain wrote, absolute or relative to its home. Raises XsError EINVAL."""
    relative = not raw.startswith(b"/")
    if len(raw) > (RELATIVE_PATH_MAX if relative else ABSOLUTE_PATH_MAX):
        raise XsError(Error.EINVAL, "path too long")
    if raw == b"/":
        return ()
    if _NAMES.fullmatch(b"/" + raw if relative else raw) is None or raw.startswith(b"@"):
        raise XsError(Error.EINVAL, "path")
    # The same few names come again and again, and are kept in nodes, watches and transactions.
    names = tuple(map(sys.intern, raw.decode("ascii").split("/")))
    return home(domid) + names if relative else names[1:]


def parse_watched(raw: bytes, domid: int) -> Path:
    """As ``parse``, but the special names are right too."""
    special = SPECIAL.get(raw.decode("ascii", "replace"))
    return special if special is not None else parse(raw, domid)


def text(path: Path) -> str:
    """The absolute path as on the wire."""
    if path and path[0].startswith("@"):
        return path[0]
    return "/" + "/".join(path)
