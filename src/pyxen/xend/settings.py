"""What an operator may set for one xend, in ``STATE/xend.toml``; a missing file means the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from pyxen.errors import ConfigError

Seconds = Annotated[float, Meta(ge=0, le=86400)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of xend.toml."""

    listen: Annotated[str, Meta(pattern=r"^(127\.[0-9.]+|localhost):[0-9]{1,5}$")] | None = None
    """Also answer on TCP, on a loopback address only: ``127.0.0.1:8000``. Callers need the token."""
    relocation: Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[0-9.]+|localhost):[0-9]{1,5}$")] | None = None
    """Take in domains from other hosts at this address: ``0.0.0.0:8002``. Peers are known by certificates."""
    minimum_restart_time: Seconds = 20
    """A domain that stops by itself again within this many seconds of its last restart is not restarted."""
    shutdown_timeout: Seconds = 300
    """After a shutdown request, report a guest that is still there."""
    detach_timeout: Seconds = 30
    """Call a guest that has been asked to let go of a device, and hasn't, an error; it may still do so later."""
    first_uid: Annotated[int, Meta(ge=1000, le=2**31)] = 200_000
    """As root, domain N's process runs as user ``first_uid + N modulo 60000``."""
    balloon: bool = False
    """While the host runs short of memory, take some from domains with ``min_memory``; give it back afterwards."""
    balloon_low_mib: Annotated[int, Meta(ge=16, le=16 * 1024 * 1024)] = 512
    """The host runs short when less than this is available."""
    balloon_high_mib: Annotated[int, Meta(ge=16, le=16 * 1024 * 1024)] = 1024
    """There is enough again when more than this is."""
    clones_waiting: Annotated[int, Meta(ge=0, le=16)] = 1
    """Keep so many QEMUs ready to become the next clones of each snapshot that has been cloned in the last ten
    minutes, while there is memory for them; 0: none."""
    kernel_cache_mib: Annotated[int, Meta(ge=0, le=1024 * 1024)] = 4096
    """Keep so much of unpacked kernels, and of packages and ramdisks of ``xm run``; more while domains use it."""
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"


def load(path: Path) -> Settings:
    """Read ``path``; raises ConfigError that names the file and the key."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    try:
        return msgspec.toml.decode(text, type=Settings)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(error), source=str(path)) from error
