"""Who may read and write a node."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

from pyxen.abi.xs_wire import Error
from pyxen.xenstore.errors import XsError

_WIRE = re.compile(rb"([nrwb])([0-9]{1,5})")
_DOMID_MAX = 0x7FF0


class Access(IntFlag):
    """What one domain may do with a node."""

    NONE = 0
    READ = 1
    WRITE = 2
    BOTH = 3


_LETTER = {Access.NONE: "n", Access.READ: "r", Access.WRITE: "w", Access.BOTH: "b"}
_ACCESS = {letter.encode(): access for access, letter in _LETTER.items()}


@dataclass(frozen=True, slots=True)
class Perms:
    """The owner (who may do everything), what is granted to some domains by name, and to all the rest."""

    owner: int = 0
    default: Access = Access.NONE
    others: tuple[tuple[int, Access], ...] = ()

    def access(self, domid: int) -> Access:
        """What ``domid`` may do; domain 0 may do everything."""
        if domid in (0, self.owner):
            return Access.BOTH
        for other, access in self.others:
            if other == domid:
                return access
        return self.default

    def __len__(self) -> int:
        return 1 + len(self.others)

    def wire(self) -> list[str]:
        """As on the wire: ``n0``, ``r5``, the owner's first."""
        entries = [(self.owner, self.default), *self.others]
        return [f"{_LETTER[access]}{domid}" for domid, access in entries]

    def without(self, domid: int) -> Perms:
        """Nothing is left to ``domid``: its nodes go to domain 0, its entries disappear."""
        kept = tuple(entry for entry in self.others if entry[0] != domid)
        return Perms(0, Access.NONE, kept) if self.owner == domid else Perms(self.owner, self.default, kept)


def parse(entries: Sequence[bytes]) -> Perms:
    """Raises XsError EINVAL for what is no list of permissions."""
    parsed = []
    for entry in entries:
        match = _WIRE.fullmatch(entry)
        if match is None or int(match[2]) >= _DOMID_MAX:
            raise XsError(Error.EINVAL, "permissions")
        parsed.append((int(match[2]), _ACCESS[match[1]]))
    if not parsed:
        raise XsError(Error.EINVAL, "permissions")
    return Perms(*parsed[0], tuple(parsed[1:]))
