"""Ports of the host that lead into a user-mode network."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator

from pyxen.config.model import Forward
from pyxen.errors import ResourceExhausted, Unsupported

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def describe(forward: Forward) -> str:
    """As xm and the API show it."""
    return f"{forward.protocol} {forward.address}:{forward.host} -> {forward.guest}"


def check_ports(forwards: Iterable[Forward]) -> None:
    """See that the host's ports are free now, in the way QEMU will take them; raises ResourceExhausted."""
    for each in forwards:
        with socket.socket(socket.AF_INET, _KINDS[each.protocol]) as probe:
            if each.protocol == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((each.address, each.host))
                if each.protocol == "tcp":
                    probe.listen(1)  # two sockets may be bound to one port, but only one may listen
            except PermissionError:
                raise Unsupported(
                    f"port {each.host} on {each.address} is for root only (forward {each.host}:{each.guest})",
                    hint="Take one from 1024 up.",
                ) from None
            except OSError as error:
                reason = "is in use" if error.errno == errno.EADDRINUSE else f"can't be had: {error.strerror}"
                raise ResourceExhausted(
                    f"port {each.host} on {each.address} {reason} (forward {each.host}:{each.guest})",
                    hint=f"Choose another, or see who has it: ss -lnp 'sport = :{each.host}'",
                ) from None


def slirp_words(forwards: Iterable[Forward]) -> Iterator[str]:
    """QEMU's words for its user-mode network, "-netdev user"."""
    for each in forwards:
        yield f"hostfwd={each.protocol}:{each.address}:{each.host}-:{each.guest}"
