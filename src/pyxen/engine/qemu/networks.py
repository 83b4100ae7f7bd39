"""A domain's networks as QEMU sees them: user-mode networks with forwards, and taps on a bridge."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator

from pyxen.config.model import DomainConfig, DomainType, Forward, Vif
from pyxen.engine.contract import DomainSpec, StartedInfo
from pyxen.engine.qemu.descriptors import Descriptors
from pyxen.engine.tap import check_bridging, limit_rate, open_tap
from pyxen.errors import ResourceExhausted, Unsupported

_CARDS = ("e1000", "e1000e", "rtl8139", "pcnet", "virtio", "virtio-net", "netfront")
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def check_networks(config: DomainConfig) -> list[str]:
    """Raises Unsupported for cards and networks that can't be had here; returns warnings."""
    warnings: list[str] = []
    for number, vif in enumerate(config.vif):
        if vif.bridge:
            check_bridging(vif.bridge)
            if vif.forward:
                warnings.append(
                    f"vif {number}: forward is for user-mode networks, on bridge {vif.bridge} it does nothing"
                )
        elif vif.rate:
            warnings.append(f"vif {number}: rate is not kept on a user-mode network")
        if vif.model is None:
            continue
        if config.type is DomainType.PVH:
            if vif.model not in ("virtio", "virtio-net", "netfront"):
                warnings.append(f"vif {number}: a pvh domain has virtio, not {vif.model}")
        elif vif.model not in _CARDS:
            raise Unsupported(
                f"vif {number}: no such network card: {vif.model}", hint=f"There are {', '.join(_CARDS)}."
            )
    return warnings


def open_networks(spec: DomainSpec, descriptors: Descriptors, info: StartedInfo) -> list[str]:
    """Make what the vifs need; returns a netdev for each. Fills in ``info``'s forwards and warnings.

    Raises ResourceExhausted for a port that is in use, Unsupported or NotFound for a bridge.
    """
    return [_netdev(spec, number, vif, descriptors, info) for number, vif in enumerate(spec.config.vif)]


def _netdev(spec: DomainSpec, number: int, vif: Vif, descriptors: Descriptors, info: StartedInfo) -> str:
    if not vif.bridge:
        check_ports(vif.forward)
        info.forwards += map(describe, vif.forward)
        return ",".join([f"user,id=vif{number}", *_forward_words(vif.forward)])
    name = vif.vifname or f"vif{spec.domid}.{number}"
    fd = descriptors.take(open_tap(name, vif.bridge))
    if vif.rate and (problem := limit_rate(name, vif.rate)):
        info.warnings.append(f"vif {number}: rate is not kept: {problem}")
    return f"tap,id=vif{number},fd={fd}"


def _forward_words(forwards: Iterable[Forward]) -> Iterator[str]:
    for each in forwards:
        yield f"hostfwd={each.protocol}:{each.address}:{each.host}-:{each.guest}"


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
