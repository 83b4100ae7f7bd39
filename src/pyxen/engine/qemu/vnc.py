"""VNC displays: display N is port 5900 + N."""

from __future__ import annotations

import socket

from pyxen.errors import ResourceExhausted

_FIRST_PORT = 5900
_DISPLAYS = 1000


def choose_display(address: str, display: int | None) -> str:
    """``ADDRESS:DISPLAY`` with ``display``, or the first free one. Raises ResourceExhausted if that is in use.

    Between this and QEMU's own bind another program may take it; then QEMU says so and the start fails.
    """
    if display is not None:
        if not _free(address, display):
            raise ResourceExhausted(
                f"VNC display {address}:{display} (port {_FIRST_PORT + display}) is in use",
                hint="Leave vncdisplay out to have the first free one.",
            )
        return f"{address}:{display}"
    for candidate in range(_DISPLAYS):
        if _free(address, candidate):
            return f"{address}:{candidate}"
    raise ResourceExhausted(f"all {_DISPLAYS} VNC displays of {address} are in use")


def _free(address: str, display: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, _FIRST_PORT + display))
            probe.listen(1)
        except OSError:
            return False
    return True
