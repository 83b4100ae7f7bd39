"""Processes that help a domain's: servers of its disks, networks, its TPM. They share its cgroup, and its CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from pyxen.engine import cgroup
from pyxen.engine.process import start_daemon


class _Whose(msgspec.Struct):
    uuid: str


def start_helper(argv: Sequence[str], directory: Path, *, pass_fds: Iterable[int]) -> str:
    """Run a program that goes into the background, for the domain in ``directory``. Blocking.

    Returns why it did not start; empty if it runs.
    """
    try:
        whose = msgspec.json.decode((directory / "domain.json").read_bytes(), type=_Whose)
    except (OSError, msgspec.DecodeError):
        return start_daemon(argv, pass_fds=pass_fds)
    return start_daemon(argv, pass_fds=pass_fds, groups=cgroup.make(whose.uuid))
