"""A domain's part of the host's CPUs and disks: Xen's weight and cap, in the words of either version of cgroups.

The domains' groups lie in one group, which competes with the host's own. It gets the sum of their weights, so that each
domain stands beside the host as Domain-0 does beside other domains in Xen, however many there are.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

USUAL_WEIGHT = 256
USUAL_IO_WEIGHT = 100
_PERIOD_US = 100_000
_V2_USUAL, _V2_MOST = 100, 10_000  # cpu.weight
_V1_USUAL, _V1_LEAST, _V1_MOST = 1024, 2, 1 << 18  # cpu.shares


@dataclass(frozen=True, slots=True)
class Shares:
    """As Xen's credit scheduler has them."""

    weight: int = USUAL_WEIGHT
    """1 to 65535; a domain gets CPU time in proportion to it where CPUs are busy."""
    cap: int = 0
    """The most that it gets, in percent of one CPU; 0: no limit."""

    @property
    def usual(self) -> bool:
        """Would it be so anyway?"""
        return self == Shares()

    @property
    def quota_us(self) -> int:
        """CPU time in each period that the cap allows. The kernel wants a millisecond at least: a cap of 1 is that."""
        return self.cap * _PERIOD_US // 100


def set_v2(group: Path, shares: Shares) -> bool:
    """Write cpu.weight and cpu.max; False if the group doesn't have them."""
    quota = str(shares.quota_us) if shares.cap else "max"
    return _write(group / "cpu.weight", v2_weight(shares.weight)) and _write(group / "cpu.max", f"{quota} {_PERIOD_US}")


def weigh_io(group: Path, weight: int) -> bool:
    """Write v2's io.weight; False if the group doesn't have it."""
    return _write(group / "io.weight", f"default {weight}")


def set_v1(group: Path, shares: Shares) -> bool:
    """Write cpu.shares and the quota; False if the group doesn't have them."""
    return (
        _write(group / "cpu.shares", v1_shares(shares.weight))
        and _write(group / "cpu.cfs_period_us", _PERIOD_US)
        and _write(group / "cpu.cfs_quota_us", shares.quota_us if shares.cap else -1)
    )


def v2_weight(weight: int) -> int:
    """In proportion: Xen's usual 256 is v2's usual 100. Above 25600 all are alike."""
    return min(max(round(weight * _V2_USUAL / USUAL_WEIGHT), 1), _V2_MOST)


def v1_shares(weight: int) -> int:
    """In proportion: Xen's usual 256 is v1's usual 1024."""
    return min(max(weight * _V1_USUAL // USUAL_WEIGHT, _V1_LEAST), _V1_MOST)


def balance_v2(root: Path) -> None:
    """Weigh the domains' common group against the host's by what is in it."""
    total = _sum(root, "cpu.weight") or _V2_USUAL
    _write(root / "cpu.weight", min(total, _V2_MOST))


def balance_v1(root: Path, cpus: int | None = None) -> None:
    """The same. v1's hosts have threads beside groups, of 1024 each: on every CPU the domains must outweigh one."""
    total = _sum(root, "cpu.shares") or _V1_USUAL
    _write(root / "cpu.shares", min(total * (cpus or os.cpu_count() or 1), _V1_MOST))


def _sum(root: Path, name: str) -> int:
    total = 0
    for file in root.glob(f"*/{name}"):
        with contextlib.suppress(OSError, ValueError):  # a group that goes away just now
            total += int(file.read_text())
    return total


def _write(file: Path, value: object) -> bool:
    """Write to a file that the kernel has put there; False if it hasn't, or doesn't take it."""
    if not file.exists():
        return False
    try:
        file.write_text(str(value))
    except OSError:
        return False
    return True
