"""Reaching whoever has a USB device elsewhere and speaks usbredir. Blocking."""

from __future__ import annotations

import socket

from pyxen.errors import Unavailable

_CONNECT_S = 10.0


def connect(peer: str) -> int:
    """A connected socket's descriptor, for ``HOST:PORT`` or ``unix:PATH``. Raises Unavailable with the reason."""
    try:
        if peer.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(_CONNECT_S)
                connection.connect(peer.removeprefix("unix:"))
            except BaseException:
                connection.close()
                raise
        else:
            host, _, port = peer.rpartition(":")
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise Unavailable(
            f"nobody speaks usbredir at {peer}: {reason}", hint="There: usbredirect --device VENDOR:PRODUCT --as …"
        ) from error
    connection.settimeout(None)
    return connection.detach()
