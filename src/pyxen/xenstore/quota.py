"""How much of the store a guest may take; domain 0 is not limited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """For each unprivileged domain. The numbers are those of Xen's own stores, if nothing else is said."""

    nodes: int = 1000
    depth: int = 128
    """Names in a path. Xen has no such limit, but then a path of 3,072 bytes may cost 100 KiB in many places."""
    value_bytes: int = 2048
    perms: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_steps: int = 1024
    """Nodes looked at and changes made within one transaction."""
    events: int = 1024
    """Watch events that wait to be fetched; beyond, they are merged, never dropped."""
    tool_events: int = 16384
    """The same for each program of domain 0."""
