"""What goes over the WebSocket of ``xm run``; :mod:`pyxen.api` says in which order."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

from pyxen.agent_api import ExecRequest
from pyxen.config.model import EngineChoice, Mib, Path, VcpuCount

BOOT_WAIT_S = 60.0
"""How long a guest may take until its agent answers."""


class RunRequest(Struct, forbid_unknown_fields=True):
    """Boot a kernel with the host's files as its root, and run a command in it."""

    command: ExecRequest
    kernel: Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")] | None = None
    """An absolute path (a kernel, a build tree, a package's file), or a package's name, a release or ``host``."""
    rw: Annotated[list[Path], Meta(max_length=8)] = field(default_factory=list)
    """Folders of the host, by absolute paths, that it may change."""
    memory: Mib = 512
    vcpus: VcpuCount = 1
    engine: EngineChoice = EngineChoice.AUTO
    gdb: bool = False
    """Stand still until somebody has connected with gdb."""
    verbose: bool = False
    """Let the kernel say all it has to say on its console."""
