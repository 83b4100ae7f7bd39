"""The domain's ports: what each is bound to, and sending through it.

The guest's side is EVENT_CHANNEL_OP (hypercalls/event_channel_op.py). The host's side is ``alloc_unbound`` and
``bind_backend``: a back end, as Domain-0, takes the other end of a port that the guest has offered.

The host's methods and BackendPort's take ``domain.lock``; the others are called with it held. Refusals are XenErrors.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from pyxen.abi.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
    ESRCH,
    XenError,
)
from pyxen.abi.event_channel import (
    FIFO_CONTROL_SIZE,
    FIFO_PRIORITY_DEFAULT,
    NR_VIRQS,
    PER_DOMAIN_VIRQS,
    PER_VCPU_VIRQS,
)
from pyxen.abi.shared_info import PAGE_SIZE
from pyxen.hypervisor.atomic import SharedPage
from pyxen.hypervisor.evtchn.fifo import Fifo
from pyxen.hypervisor.evtchn.two_level import TwoLevel
from pyxen.hypervisor.shared_info import SharedInfo
from pyxen.hypervisor.vcpu import Vcpu

BACKEND_DOMID = 0
DEFAULT_MAX_PORTS = 4096


class State(enum.IntEnum):
    """What a port is; the values are EVTCHNSTAT_…"""

    UNBOUND = 1
    INTERDOMAIN = 2
    VIRQ = 4
    IPI = 5


class Channel:
    """One open port of the guest."""

    __slots__ = ("peer", "pending_later", "port", "priority", "remote", "state", "vcpu", "virq")

    def __init__(self, port: int, state: State) -> None:
        self.port = port
        self.state = state
        self.vcpu = 0
        """The VCPU that is told of events."""
        self.virq = 0
        self.remote = 0
        """The domain at the other end, or that may take it."""
        self.peer: Channel | BackendPort | None = None
        self.priority = FIFO_PRIORITY_DEFAULT
        self.pending_later = False
        """FIFO: an event came before the guest gave the array page for it."""


class BackendPort:
    """A back end's end of an event channel. Its methods may be called from any thread."""

    def __init__(self, channels: EventChannels, channel: Channel, callback: Callable[[], None]) -> None:
        self._channels = channels
        self._channel: Channel | None = channel
        self.port = channel.port
        """The guest's port."""
        self.callback = callback

    @property
    def connected(self) -> bool:
        """Whether the guest's port is still there."""
        return self._channel is not None

    def notify(self) -> None:
        """Raise the guest's event. Nothing happens if the guest has closed its port."""
        with self._channels.lock:
            if self._channel is not None:
                self._channels.raise_event(self._channel)

    def close(self) -> None:
        """Let go: the guest's port waits for another back end again. May be called twice."""
        with self._channels.lock:
            channel, self._channel = self._channel, None
            if channel is not None:
                channel.state, channel.peer = State.UNBOUND, None

    def closed_by_guest(self) -> None:
        self._channel = None


class _Ports(Protocol):
    """How pending events are shown to the guest."""

    @property
    def max_ports(self) -> int: ...

    def set_pending(self, channel: Channel) -> bool: ...

    def clear_pending(self, channel: Channel) -> None: ...

    def is_pending(self, channel: Channel) -> bool: ...

    def unmask(self, channel: Channel) -> None: ...

    def set_priority(self, channel: Channel, priority: int) -> None: ...


class EventChannels:
    """All ports of one domain. ``page`` finds a frame of its memory or raises BadAddress."""

    def __init__(
        self,
        domid: int,
        vcpus: list[Vcpu],
        shared_info: SharedInfo,
        lock: AbstractContextManager[bool],
        page: Callable[[int], SharedPage],
        max_ports: int = DEFAULT_MAX_PORTS,
    ) -> None:
        self.domid = domid
        self.lock = lock
        self.fifo: Fifo | None = None
        self.pollers: set[Vcpu] = set()
        """VCPUs inside SCHEDOP_poll."""
        self.vcpu_left: Callable[[int], None] = lambda vcpu: None
        """Told of a VCPU whose IPI or VIRQ the guest has closed: it does so to those that it has taken offline."""
        self.observer: Callable[[Channel], None] | None = None
        """Told of every event for the guest, while somebody traces the domain."""
        self._vcpus = vcpus
        self._info = shared_info
        self._page = page
        self._limit = max_ports
        self._ports: _Ports = TwoLevel(shared_info, vcpus)
        self._channels: dict[int, Channel] = {}
        self._freed: list[int] = []
        self._next = 1

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels.values())

    @property
    def max_ports(self) -> int:
        """Port numbers end before this."""
        return min(self._limit, self._ports.max_ports)

    @property
    def end(self) -> int:
        """All ports in use have lower numbers."""
        return max(self._channels, default=0) + 1

    def leave_out(self, end: int) -> None:
        """Give no port from now on a number below ``end``, if that leaves at least half of them.

        A restored guest may give back channels that it had before: Linux 6.1's driver of further consoles does, after
        others have got new ones. Numbers that nobody has are refused; those of another device would silence it.
        """
        if self._next < end <= self.max_ports // 2:
            self._next = end

    # The host's side

    def alloc_unbound(self, remote: int = BACKEND_DOMID) -> int:
        """A new port of the guest that domain ``remote`` may bind to."""
        with self.lock:
            channel = self._allocate(State.UNBOUND)
            channel.remote = remote
            return channel.port

    def bind_backend(self, port: int, callback: Callable[[], None]) -> BackendPort:
        """Take the other end of the guest's unbound ``port``; what it sends calls ``callback``.

        ``callback`` runs in the VCPU's thread with ``domain.lock`` held: it should only wake somebody. It is called
        once at once, since what the guest sent earlier is lost.
        Raises XenError(EINVAL) if the guest offers no such port to Domain-0.
        """
        with self.lock:
            channel = self._channels.get(port)
            if channel is None or channel.state is not State.UNBOUND or channel.remote != BACKEND_DOMID:
                raise XenError(EINVAL, f"port {port} is not one that the guest offers to Domain-0")
            backend = BackendPort(self, channel, callback)
            channel.state, channel.peer = State.INTERDOMAIN, backend
        callback()
        return backend

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """Raise a VIRQ of a VCPU; whether the guest has bound it."""
        with self.lock:
            port = self._vcpus[vcpu].virqs[virq]
            if not port:
                return False
            self.raise_event(self._channels[port])
            return True

    def raise_event(self, channel: Channel) -> None:
        """Make a port pending, and end a poll that waits for it."""
        if self.observer is not None:
            self.observer(channel)
        if self._ports.set_pending(channel):
            for vcpu in self.pollers:
                if channel.port in vcpu.polling:
                    vcpu.wake()

    # The guest's side

    def get(self, port: int) -> Channel | None:
        """The channel at ``port``, None if it is closed. Raises XenError for what can't be a port."""
        if not 0 <= port < self.max_ports:
            raise XenError(EINVAL)
        return self._channels.get(port)

    def _open(self, port: int) -> Channel:
        channel = self._channels.get(port)
        if channel is None:
            raise XenError(EINVAL)
        return channel

    def _allocate(self, state: State) -> Channel:
        if self._freed and self._freed[0] < self.max_ports:
            port = heapq.heappop(self._freed)
        elif self._next < self.max_ports:
            port = self._next
            self._next += 1
        else:
            raise XenError(ENOSPC)
        channel = self._channels[port] = Channel(port, state)
        return channel

    def _vcpu(self, index: int) -> Vcpu:
        if index >= len(self._vcpus):
            raise XenError(ENOENT)
        return self._vcpus[index]

    def bind_interdomain(self, remote_dom: int, remote_port: int) -> int:
        """Bind a new port to an unbound one. Domain-0 offers none, so it is one of the guest's own."""
        if remote_dom not in (self.domid, BACKEND_DOMID):
            raise XenError(ESRCH)
        remote = self._channels.get(remote_port)
        if remote_dom != self.domid or remote is None:
            raise XenError(EINVAL)
        if remote.state is not State.UNBOUND or remote.remote != self.domid:
            raise XenError(EINVAL)
        local = self._allocate(State.INTERDOMAIN)
        local.remote, local.peer = self.domid, remote
        remote.state, remote.peer = State.INTERDOMAIN, local
        self.raise_event(local)
        return local.port

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """A port for a VIRQ of a VCPU."""
        if virq >= NR_VIRQS or (virq not in PER_VCPU_VIRQS and vcpu != 0):
            raise XenError(EINVAL)
        target = self._vcpu(vcpu)
        if virq not in PER_VCPU_VIRQS and virq not in PER_DOMAIN_VIRQS:
            raise XenError(EBUSY, "Domain-0 handles the global VIRQs")
        if target.virqs[virq]:
            raise XenError(EEXIST)
        channel = self._allocate(State.VIRQ)
        channel.vcpu, channel.virq = vcpu, virq
        target.virqs[virq] = channel.port
        return channel.port

    def bind_ipi(self, vcpu: int) -> int:
        """A port by which VCPUs interrupt ``vcpu``."""
        self._vcpu(vcpu)
        channel = self._allocate(State.IPI)
        channel.vcpu = vcpu
        return channel.port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Let a VCPU be told of future events of a port that isn't tied to one."""
        self._vcpu(vcpu)
        channel = self._open(port)
        if channel.state is State.IPI or (channel.state is State.VIRQ and channel.virq in PER_VCPU_VIRQS):
            raise XenError(EINVAL)
        channel.vcpu = vcpu

    def send(self, port: int) -> None:
        """Notify the other end."""
        channel = self._channels.get(port)
        if channel is None:
            raise XenError(EINVAL)
        peer = channel.peer
        if isinstance(peer, BackendPort):
            peer.callback()
        elif channel.state is State.VIRQ:
            raise XenError(EINVAL)
        elif peer is not None:
            self.raise_event(peer)
        elif channel.state is State.IPI:
            self.raise_event(channel)

    def unmask(self, port: int) -> None:
        """Clear a port's mask and deliver what it held back. A closed port has nothing to deliver."""
        channel = self.get(port)
        if channel is not None:
            self._ports.unmask(channel)

    def is_pending(self, port: int) -> bool:
        channel = self.get(port)
        return channel is not None and self._ports.is_pending(channel)

    def set_priority(self, port: int, priority: int) -> None:
        """FIFO only: which of the sixteen queues future events go to."""
        channel = self.get(port)
        self._ports.set_priority(channel if channel is not None else Channel(port, State.UNBOUND), priority)

    def close(self, port: int) -> None:
        """Close the guest's port; the other end becomes unbound."""
        channel = self._open(port)
        peer = channel.peer
        if isinstance(peer, BackendPort):
            peer.closed_by_guest()
        elif peer is not None:
            peer.state, peer.peer, peer.remote = State.UNBOUND, None, self.domid
        if channel.state is State.VIRQ:
            self._vcpus[channel.vcpu if channel.virq in PER_VCPU_VIRQS else 0].virqs[channel.virq] = 0
        if channel.state is State.IPI or (channel.state is State.VIRQ and channel.virq in PER_VCPU_VIRQS):
            self.vcpu_left(channel.vcpu)
        self._ports.clear_pending(channel)
        del self._channels[port]
        heapq.heappush(self._freed, port)

    def reset(self) -> None:
        """Close every port and go back to the 2-level ABI."""
        for port in list(self._channels):
            if port in self._channels:
                self.close(port)
        self.fifo = None
        self._ports = TwoLevel(self._info, self._vcpus)

    def init_control(self, vcpu: int, gfn: int, offset: int) -> None:
        """Give a VCPU its control block; the first one switches the domain to the FIFO ABI."""
        self._vcpu(vcpu)
        if offset > PAGE_SIZE - FIFO_CONTROL_SIZE or offset % 8:
            raise XenError(EINVAL)
        fifo = self.fifo or Fifo(self._vcpus, self._page)
        fifo.map_control_block(vcpu, gfn, offset)
        if self.fifo is None:
            for channel in self:
                channel.pending_later = self._ports.is_pending(channel)
                channel.priority = FIFO_PRIORITY_DEFAULT
            self.fifo = self._ports = fifo

    def expand_array(self, gfn: int) -> None:
        """Add a page of FIFO event words."""
        if self.fifo is None:
            raise XenError(EOPNOTSUPP)
        self.fifo.expand(gfn, self)
