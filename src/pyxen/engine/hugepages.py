"""The host's pool of huge pages: are there enough for a domain? See the kernel's admin-guide/mm/hugetlbpage."""

from __future__ import annotations

from pathlib import Path

from pyxen.config.model import DomainConfig
from pyxen.errors import ResourceExhausted, Unsupported

SYS = Path("/sys/kernel/mm/hugepages")
SIZES_MIB = {"2m": 2, "1g": 1024}


def check_hugepages(config: DomainConfig, sys: Path = SYS) -> None:
    """Raises ResourceExhausted if the host's pool has too few pages left, Unsupported if there are none of the size."""
    if config.hugepages is None:
        return
    size = SIZES_MIB[config.hugepages]
    folder = sys / f"hugepages-{size * 1024}kB"
    if not folder.is_dir():
        raise Unsupported(f"this host has no huge pages of {config.hugepages.upper()}")
    needed = max(config.memory, config.maxmem or 0) // size
    # Those that may be made on demand can't be counted on, but the kernel may find them.
    spare = _read(folder, "nr_overcommit_hugepages") - _read(folder, "surplus_hugepages")
    left = _read(folder, "free_hugepages") - _read(folder, "resv_hugepages") + max(spare, 0)
    if left < needed:
        there, word = _read(folder, "nr_hugepages"), config.hugepages.upper()
        raise ResourceExhausted(
            f"'{config.name}' needs {needed} huge pages of {word}, the host has {max(left, 0)} left",
            hint=f"Make more: echo {there + needed - left} > {folder}/nr_hugepages",
        )


def _read(folder: Path, name: str) -> int:
    try:
        return int((folder / name).read_text())
    except (OSError, ValueError):
        return 0
