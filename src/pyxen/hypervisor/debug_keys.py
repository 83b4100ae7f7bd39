"""What ``xm debug-keys`` has a domain's process say of itself: Xen's keys, in Xen's words (xen/common/keyhandler.c)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from pyxen.abi.event_channel import VIRQ_DEBUG
from pyxen.errors import InvalidRequest
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.evtchn.channels import Channel, State
from pyxen.hypervisor.vcpu import Vcpu

DESCRIPTIONS: Final[Mapping[str, str]] = {
    "e": "dump evtchn info",
    "g": "print grant table usage",
    "q": "dump domain (and guest debug) info",
}
_MOST_LINES: Final = 200


def press(domain: Domain, key: str) -> list[str]:
    """The lines that a key asks for, the first so many. Raises InvalidRequest for an unknown key."""
    handler = _HANDLERS.get(key)
    if handler is None:
        raise InvalidRequest(f"there is no debug key {key!r}", hint=f"There are {', '.join(DESCRIPTIONS)}.")
    with domain.lock:
        lines = list(handler(domain))
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"    … and {len(lines) - _MOST_LINES} lines more"]
    return lines


def _domain(domain: Domain) -> Iterator[str]:
    reservation = domain.reservation
    yield f"General information for domain {domain.domid}:"
    yield f"    nr_pages={reservation.current} max_pages={reservation.maximum}"
    yield f"VCPU information and callbacks for domain {domain.domid}:"
    for vcpu in domain.vcpus:
        up = domain.machine.vcpu_is_up(vcpu.index)
        yield f"    VCPU{vcpu.index}: {_state(vcpu, up)} upcall_pend={vcpu.upcall_pending:02d}"
    for vcpu in domain.vcpus:
        port = vcpu.virqs[VIRQ_DEBUG]
        yield f"Notifying guest {domain.domid}:{vcpu.index} (virq {VIRQ_DEBUG}, port {port})"
        domain.evtchn.raise_virq(VIRQ_DEBUG, vcpu.index)


def _state(vcpu: Vcpu, up: bool) -> str:
    if not up:
        return "down"
    return f"poll={','.join(map(str, sorted(vcpu.polling))) or 0}"


def _channels(domain: Domain) -> Iterator[str]:
    yield f"Event channel information for domain {domain.domid}:"
    yield "    port [pending] state"
    for channel in sorted(domain.evtchn, key=lambda each: each.port):
        pending = int(domain.evtchn.is_pending(channel.port))
        yield f"    {channel.port:4d} [{pending}]: s={channel.state.value} n={channel.vcpu}{_end(channel)}"


def _end(channel: Channel) -> str:
    match channel.state:
        case State.UNBOUND:
            return f" d={channel.remote}"
        case State.INTERDOMAIN:
            return f" d={channel.remote} p={getattr(channel.peer, 'port', 0)}"
        case State.VIRQ:
            return f" v={channel.virq}"
        case _:
            return ""


def _grants(domain: Domain) -> Iterator[str]:
    table = domain.grants
    yield f"grant-table for remote d{domain.domid} (v{table.version})"
    yield f"  {len(table.frames)} frames ({table.max_frames} max)"
    yield "[ref]  localdom gmfn       pin"
    for ref, active in sorted(table.active.items()):
        yield f"[0x{ref:03x}]       0 {active.gfn:#010x} {active.pins:#010x} {'rw' if active.writable else 'ro'}"
    if not table.active:
        yield "no active grant table entries"


_HANDLERS: Final[Mapping[str, Callable[[Domain], Iterator[str]]]] = {"e": _channels, "g": _grants, "q": _domain}
