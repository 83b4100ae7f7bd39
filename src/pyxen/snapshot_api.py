"""The bodies that go over HTTP for snapshots and clones; the paths are in :mod:`pyxen.api`."""

from __future__ import annotations

from msgspec import Struct

from pyxen.config.model import Name


class SnapshotRequest(Struct, forbid_unknown_fields=True):
    name: Name
    quiesce: bool = False
    """Have QEMU's guest agent write out and freeze the guest's file systems meanwhile."""


class Snapshot(Struct):
    """A domain's memory and writable disks as they were at one moment."""

    name: str
    domain: str
    """Its name; it may be gone."""
    uuid: str
    """The domain's."""
    created_at: float
    disks: list[str]
    """The disks in it, by vdev."""
    disk_bytes: int
    """What it takes on the disk; copies by reference are counted in full."""


class SnapshotList(Struct):
    snapshots: list[Snapshot]
    """The oldest first."""


class RevertRequest(Struct, forbid_unknown_fields=True):
    paused: bool = False


class CloneRequest(Struct, forbid_unknown_fields=True):
    name: Name
    snapshot: str | None = None
    """None: what the domain is now."""
    paused: bool = False
    managed: bool = False
    """Keep it when it stops."""
