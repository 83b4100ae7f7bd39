"""A domain's networks as QEMU sees them: user-mode networks with forwards, and taps on a bridge."""

from __future__ import annotations

from pyxen.config.model import PARAVIRTUAL_MODELS, DomainConfig, DomainType, Vif, vif_numbers
from pyxen.engine.contract import DomainSpec, StartedInfo, joins_at_once, tap_name
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.forwards import check_ports, describe, slirp_words
from pyxen.engine.tap import change_rate, check_bridging, limit_rate, open_tap
from pyxen.errors import Unsupported

_CARDS = ("e1000", "e1000e", "rtl8139", "pcnet", *PARAVIRTUAL_MODELS)


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
            if not vif.paravirtual:
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
    numbers = vif_numbers(spec.config.vif)
    return [
        open_network(spec, number, vif, descriptors, info) for number, vif in zip(numbers, spec.config.vif, strict=True)
    ]


def open_network(spec: DomainSpec, number: int, vif: Vif, descriptors: Descriptors, info: StartedInfo) -> str:
    """Make what one vif needs; returns its netdev. Raises as :func:`open_networks` does."""
    if not vif.bridge:
        check_ports(vif.forward)
        info.forwards += map(describe, vif.forward)
        return ",".join([f"user,id=vif{number}", *slirp_words(vif.forward)])
    name = tap_name(spec, number, vif)
    fd = descriptors.take(open_tap(name, vif.bridge, joined=joins_at_once(spec, vif)))
    if vif.rate and (problem := limit_rate(name, vif.rate)):
        info.warnings.append(f"vif {number}: rate is not kept: {problem}")
    return f"tap,id=vif{number},fd={fd}"


def limit_network(spec: DomainSpec, number: int, vif: Vif) -> None:
    """Hold a running domain's vif to the rate that it has now. Blocking. Raises Unsupported."""
    if not vif.bridge:
        raise Unsupported(
            f"vif {number} of '{spec.config.name}' is on a user-mode network, where QEMU keeps no rate",
            hint="Vifs on a bridge, and all of the Xen engine's, can be limited.",
        )
    if (problem := change_rate(tap_name(spec, number, vif), vif.rate)) is not None:
        raise Unsupported(f"vif {number} of '{spec.config.name}' can't be limited: {problem}")
