"""Names of vendors and devices, from the list that Debian's packages pci.ids and usb.ids bring, if it is there."""

from __future__ import annotations

import functools
from pathlib import Path

_FOLDERS = ("misc", "hwdata")


def names(share: Path, list_name: str, vendor: int, device: int) -> tuple[str, str]:
    """The vendor's name and the device's, empty where nobody knows them; ``list_name`` is pci.ids or usb.ids."""
    found = _read(share, list_name)
    return found.get((vendor, None), ""), found.get((vendor, device), "")


@functools.cache
def _read(share: Path, list_name: str) -> dict[tuple[int, int | None], str]:
    """The whole list: a line for a vendor, behind it one with a tab for each device (pci.ids' own first lines)."""
    path = next((each for folder in _FOLDERS if (each := share / folder / list_name).exists()), None)
    found: dict[tuple[int, int | None], str] = {}
    if path is None:
        return found
    vendor: int | None = None
    for line in path.read_text(errors="replace").splitlines():
        if line.startswith(("\t\t", "#")):
            continue
        number, _, name = line.strip().partition("  ")
        try:
            code = int(number, 16) if len(number) == 4 else None
        except ValueError:
            code = None
        if not line.startswith("\t"):
            vendor = code
            if code is not None:
                found[code, None] = name
        elif vendor is not None and code is not None:
            found[vendor, code] = name
    return found
