"""What the store and the recipes for images agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pyxen.image.debs import KernelFiles

FAST_START: Final = "cryptomgr.notests initcall_blacklist=crypto_kdf108_init noreplace-smp"
"""For the kernel's command line: no self-tests of cryptography, no rewriting of locks for one CPU. Under TCG that is
0.3 of the 1.56 s to the first line in user space (6.1, one VCPU)."""

Report = Callable[[str, float | None], None]
"""Told of each step: what is being done, and how much of the whole is behind (0 to 1) where it is known."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a recipe made, as names of files in its folder, and the command line that suits them."""

    kernel: str
    ramdisk: str | None = None
    root_disk: str | None = None
    cmdline: str = ""


class Recipe(Protocol):
    """A module that can build one kind of image."""

    VERSION: int
    """Raised with each change of what is made, so that older images are built again."""
    OPTIONS: Mapping[str, str]
    """The options it takes, each with the text it has by default."""

    def check(self, options: Mapping[str, str]) -> None:
        """Refuse, before anything is fetched, what can't be built here."""
        ...

    def build(
        self, folder: Path, scratch: Path, kernel: KernelFiles, options: Mapping[str, str], report: Report
    ) -> Contents:
        """Make the image's files in ``folder``; ``scratch`` is removed afterwards."""
        ...
