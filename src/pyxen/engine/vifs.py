"""A domain's networks for the Xen engine: taps on bridges, streams to user-mode networks. Both are descriptors."""

from __future__ import annotations

from pathlib import Path

from pyxen.config.model import DomainConfig, Vif, vif_numbers
from pyxen.engine.contract import DomainSpec, StartedInfo, joins_at_once, tap_name
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.forwards import check_ports, describe
from pyxen.engine.tap import check_bridging, open_tap
from pyxen.engine.usernet import check_usernet, close_usernet, open_usernet


def check_networks(config: DomainConfig) -> list[str]:
    """Raises Unsupported or NotFound for networks that can't be had here; returns warnings."""
    warnings: list[str] = []
    for number, vif in enumerate(config.vif):
        if vif.bridge:
            check_bridging(vif.bridge)
        else:
            check_usernet()
        if vif.bridge and vif.forward:
            warnings.append(f"vif {number}: forward is for user-mode networks, on bridge {vif.bridge} it does nothing")
        if not vif.paravirtual:
            warnings.append(f"vif {number}: a pvh domain has netfront, not {vif.model}")
    return warnings


def open_networks(spec: DomainSpec, directory: Path, descriptors: Descriptors, info: StartedInfo) -> list[str]:
    """Make what the vifs need; returns the hypervisor's words for it. Fills in ``info``'s forwards.

    Raises ResourceExhausted for a port that is in use, EngineError for a network that does not start.
    """
    words: list[str] = []
    for number, vif in zip(vif_numbers(spec.config.vif), spec.config.vif, strict=True):
        kind = "--tap" if vif.bridge else "--stream"
        words += [kind, f"{number}={descriptors.take(open_network(spec, directory, number, vif, info))}"]
    return words


def open_network(spec: DomainSpec, directory: Path, number: int, vif: Vif, info: StartedInfo) -> int:
    """Make what one vif needs; returns the descriptor of its tap, or of its stream. As :func:`open_networks`."""
    if vif.bridge:
        return open_tap(tap_name(spec, number, vif), vif.bridge, joined=joins_at_once(spec, vif))
    check_ports(vif.forward)
    fd = open_usernet(directory, f"vif{number}", vif.forward, spec.uid)
    info.forwards += map(describe, vif.forward)
    return fd


def close_network(directory: Path, number: int) -> None:
    """End what a vif's network still has when the hypervisor has closed its descriptor. Blocking."""
    close_usernet(directory, f"vif{number}")
