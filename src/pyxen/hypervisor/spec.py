"""What the process reads of ``domain.json``, which xend has written (engine.contract.DomainSpec)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pyxen.config.model import DomainConfig
from pyxen.errors import InvalidRequest


class DomainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A domain with nothing left open. ``kernel`` is an uncompressed ELF file; paths are absolute."""

    domid: int
    uuid: str
    config: DomainConfig
    kernel: str
    ramdisk: str | None = None
    cmdline: str = ""
    uid: int | None = None
    """Who to be while the guest runs, with the group of the same number; None: who started the process."""

    @property
    def most_memory(self) -> int:
        """MiB that the guest may have: its map shows as many from the start."""
        return max(self.config.memory, self.config.maxmem or 0)

    @property
    def most_vcpus(self) -> int:
        return max(self.config.vcpus, self.config.maxvcpus or 0)


def load(path: Path) -> DomainSpec:
    """Raises InvalidRequest if there is no such file or it says something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DomainSpec)
    except OSError as error:
        raise InvalidRequest(f"{path} can't be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} does not describe a domain: {error}") from error
