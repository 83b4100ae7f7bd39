"""What xend's HTTP side needs of xend's inside: one Protocol, so that either can be read and tested alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from pyxen import agent_api, api, run_api, snapshot_api

if TYPE_CHECKING:
    from pyxen.xend.agent_contract import GuestCommand
    from pyxen.xend.console import Console
    from pyxen.xend.cpupools import CpuPools
    from pyxen.xend.devices import Devices
    from pyxen.xend.events import Events
    from pyxen.xend.migration import Migration
    from pyxen.xend.passthrough import Passthrough
    from pyxen.xend.sandboxes import Sandbox, Tell
    from pyxen.xend.scheduling import Scheduling
    from pyxen.xend.screens import Screens
    from pyxen.xend.snapshots import Snapshots
    from pyxen.xend.xenstore import Xenstore


class Agents(Protocol):
    """The agents of guests."""

    async def begin(self, ref: str, request: agent_api.AgentRequest) -> GuestCommand:
        """Start a command, or open a file; returns when it has started."""
        ...

    async def interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        """A guest's network interfaces; none where no agent says."""
        ...


class Sandboxes(Protocol):
    """Domains of ``xm run``."""

    def open(self, request: run_api.RunRequest, tell: Tell) -> AbstractAsyncContextManager[Sandbox]:
        """A domain for the command; it ends with the context."""
        ...


class Core(Protocol):
    """xend's domains. ``ref`` is a name, an id or a UUID; an unknown one raises NotFound."""

    @property
    def events(self) -> Events: ...

    def list(self) -> list[api.Domain]:
        """Domain-0 first, then by name."""
        ...

    def get(self, ref: str) -> api.Domain: ...

    def vcpus(self, ref: str) -> api.VcpuList: ...

    async def create(self, request: api.CreateRequest) -> api.Domain: ...

    async def start(self, ref: str, *, paused: bool) -> api.Domain: ...

    async def shutdown(self, ref: str, reason: str) -> api.Domain: ...

    async def destroy(self, ref: str) -> api.Domain: ...

    async def pause(self, ref: str) -> api.Domain: ...

    async def unpause(self, ref: str) -> api.Domain: ...

    async def suspend(self, ref: str) -> api.Domain:
        """Returns when the guest has put itself in order and stands still."""
        ...

    async def resume(self, ref: str) -> api.Domain: ...

    async def rename(self, ref: str, name: str) -> api.Domain: ...

    async def delete(self, ref: str) -> None: ...

    async def set_vcpus(self, ref: str, count: int) -> api.Domain: ...

    async def set_memory(self, ref: str, mib: int) -> api.Domain: ...

    async def set_maxmem(self, ref: str, mib: int) -> api.Domain: ...

    async def sysrq(self, ref: str, key: str) -> api.Domain: ...

    async def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None) -> api.Domain: ...

    async def dump_core(self, ref: str, request: api.DumpRequest) -> api.CoreDump:
        """Returns when it has been written."""
        ...

    async def save(self, ref: str, request: api.SaveRequest) -> api.SavedState:
        """Returns when the file is whole and the domain has ended, or goes on."""
        ...

    async def restore(self, request: api.RestoreRequest) -> api.Domain: ...

    async def revert(self, ref: str, snapshot: str, request: snapshot_api.RevertRequest) -> api.Domain: ...

    async def clone(self, ref: str, request: snapshot_api.CloneRequest) -> api.Domain:
        """Returns when the clone runs and its source goes on."""
        ...

    @property
    def snapshots(self) -> Snapshots: ...

    async def built(self, ref: str) -> None:
        """Return when the domain is not, or no longer, being built (at its start or restart)."""
        ...

    def console(self, ref: str) -> Console:
        """Raises Conflict if the domain is not running."""
        ...

    @property
    def agent(self) -> Agents: ...

    @property
    def screens(self) -> Screens: ...

    @property
    def sandboxes(self) -> Sandboxes: ...

    @property
    def xenstore(self) -> Xenstore: ...

    @property
    def devices(self) -> Devices: ...

    @property
    def passthrough(self) -> Passthrough: ...

    @property
    def scheduling(self) -> Scheduling: ...

    @property
    def cpupools(self) -> CpuPools: ...
    @property
    def migration(self) -> Migration: ...

    async def trace(self, ref: str, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Lines of TraceRecord; refuses when awaited."""
        ...

    def host(self) -> api.Host: ...

    def topology(self) -> api.HostTopology: ...

    def dmesg(self) -> str: ...

    async def debug_keys(self, keys: str) -> None:
        """Press them; what the domains' hypervisors say of themselves comes into ``dmesg``."""
        ...

    def images(self) -> api.ImageList:
        """May touch the disk: call it in a thread."""
        ...

    async def build_image(self, name: str, request: api.BuildRequest) -> AsyncIterator[api.Progress]:
        """Refuses what can't be built when awaited, then says how the building goes; closing the iterator ends it."""
        ...

    async def remove_image(self, name: str) -> None: ...
