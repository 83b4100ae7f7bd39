"""The contract between xend and whatever runs a domain.

A domain is a process of its own that outlives xend. All that xend must know to find it again lies in the domain's
folder (``RUN/domains/DOMID``), written by xend before the start and by the process itself afterwards:

    domain.json   the DomainSpec (mode 0600)
    pid           the process id, one line
    console.log   every byte the guest has printed; only ever appended to. xend frees old blocks by punching holes,
                  so offsets stay valid and the file's disk use stays small
    console.in    a FIFO: what is written here is typed into the guest. The domain's process holds a write end of
                  its own, so it never sees an end of file
    events        lines of JSON, appended by the process: what happened to the guest, with a time stamp. It survives
                  xend, so that an adopting xend learns why a domain stopped
    stderr        what the process said besides
    control.sock  the engine's own control channel
    gdb.sock      leads to the engine's stub for gdb, for a domain that has one
    agent.sock    leads to the agent in the guest, whether it has one or not; one connection at a time
    qga.sock      the same, to QEMU's guest agent, where the guest could have that one
    copies.sock   of a domain that arrives: an NBD server, with an export of its vdev's name for each empty disk
    copy-VDEV     of a domain that is being sent: xend's socket, which leads to that disk's export on the other host

Nothing here polls: console.log and events are watched by inotify, the process by a pidfd.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from pyxen.api import AgentKind, EngineInfo, ShutdownReason, Trigger, Vcpu
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.engine.cgroup.shares import Shares
from pyxen.engine.placement import Placement
from pyxen.engine.template import Template

COPIES = "copies.sock"


def copy_socket(vdev: str) -> str:
    """Where a disk's copy on another host is reached, in the domain's folder."""
    return f"copy-{vdev}"


class Waking(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest of a clone must still be told."""

    hostname: str | None = None
    """None: it keeps the one that it has."""
    machine_id: str
    """32 hexadecimal digits, machine-id(5)."""
    macs: dict[str, str] = {}
    """Its vifs' new addresses by the old ones, of those on bridges; they are connected when it has them."""


class DomainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A DomainConfig with nothing left open: what an engine needs to start one domain.

    Paths are absolute and exist; ``config.vif`` have MACs; ``config.disk`` have formats other than auto.
    """

    domid: int
    uuid: str
    config: DomainConfig
    kernel: str | None = None
    """An uncompressed ELF (vmlinux) for pvh; for hvm a bzImage or None: boot from firmware."""
    ramdisk: str | None = None
    cmdline: str = ""
    nvram: str | None = None
    """The domain's own UEFI variables, writable, for hvm with uefi firmware."""
    tpm: str | None = None
    """What the domain's TPM keeps its state in, for hvm with a TPM."""
    uid: int | None = None
    """Run as this user (and a group of the same number); None: as xend's own."""

    nodes: tuple[int, ...] = ()
    """NUMA nodes to take its memory from, as long as they have some; empty: any."""

    machine: str | None = None
    """The monitor's model of a machine, where it must be a certain one: that of a saved state."""
    generation: str | None = None
    """A UUID that changes when the guest goes back in time or becomes two (ACPI's VM generation ID); None: it has none.
    """
    waking: Waking | None = None

    qga: bool = False
    """QEMU's machine has a port for QEMU's guest agent. It fits a saved state as little as another model would."""
    slots: dict[str, int] = {}
    """The place on its bus of each device that has one, by the device's id; those missing get a free one."""

    @property
    def most_vcpus(self) -> int:
        """VCPUs that it can have without a new start."""
        return max(self.config.vcpus, self.config.maxvcpus or 0)

    @property
    def most_memory_mib(self) -> int:
        """Memory that it can have without a new start."""
        return max(self.config.memory, self.config.maxmem or 0)


@dataclass(frozen=True, slots=True)
class UsbController:
    """What USB devices are plugged into; a domain has one at most, with the id ``usb``."""


Pluggable: TypeAlias = Disk | Vif | PciDevice | UsbController | UsbDevice
"""What may come and go while a domain runs."""


def tap_name(spec: DomainSpec, number: int, vif: Vif) -> str:
    """The host's network device of a vif on a bridge."""
    return vif.vifname or f"vif{spec.domid}.{number}"


def joins_at_once(spec: DomainSpec, vif: Vif) -> bool:
    """Whether it is on its bridge from the start: one of a clone is when the guest knows its new address."""
    return spec.waking is None or vif.mac not in spec.waking.macs.values()


@dataclass(frozen=True, slots=True)
class Stopped:
    """The guest has stopped; its process may still be there (for preserve and core dumps) until ``destroy``."""

    reason: ShutdownReason
    detail: str = ""
    """The monitor's last words, where it failed."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A look at a running domain. Cheap: no question is sent to the guest or its monitor."""

    cpu_time_s: float
    vcpus: list[Vcpu]
    """All that it can have, those that are not online too."""
    blocked: bool
    """No VCPU is using the CPU."""
    resident_mib: int
    memory_mib: int | None = None
    """What the guest has, between its balloon's last word and now; None: it has said nothing yet."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a live migration has to keep to."""

    bandwidth: int | None = None
    """Bytes a second; None: as fast as it goes."""
    downtime_ms: int = 300
    """The guest is stopped when what is left can be sent in this time."""
    converge: bool = True
    """Slow a guest down that writes faster than can be sent."""


@dataclass(frozen=True, slots=True)
class Moving:
    """How far a live migration is. Bytes of guest memory; a page that the guest writes again counts again."""

    sent: int
    remaining: int
    rounds: int
    stopped_s: float = 0.0
    """How long the guest had stood still when the last of it was sent."""


@dataclass(slots=True)
class StartedInfo:
    """What became known at the start."""

    accelerator: str = ""
    vnc: str | None = None
    gdb: str | None = None
    """The socket to which gdb can connect."""
    forwards: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    jail: list[str] = field(default_factory=list)
    """What confines the process, beyond its user's own bounds."""
    late: list[str] = field(default_factory=list)
    """Disks that it gets when it goes on: until then they may be another process's."""


class RunningDomain(Protocol):
    """A domain's process, as xend holds it. Made by Engine.start or Engine.adopt, on xend's event loop."""

    @property
    def domid(self) -> int: ...

    @property
    def pid(self) -> int: ...

    @property
    def paused(self) -> bool: ...

    @property
    def stalled(self) -> str | None:
        """Why the monitor has paused it by itself, where it has: a disk of it is full on the host."""
        ...

    @property
    def since(self) -> float | None:
        """When the guest last came to stand still, or went on, in seconds since 1970; None: that isn't known."""
        ...

    @property
    def stopped(self) -> Stopped | None:
        """Set once the guest has stopped or the process has died."""
        ...

    @property
    def info(self) -> StartedInfo: ...

    def on_stopped(self, callback: Callable[[Stopped], None]) -> None:
        """Call ``callback`` once, on the event loop, when the guest stops (at once if it has)."""
        ...

    async def pause(self) -> None: ...

    async def unpause(self) -> None: ...

    @property
    def suspended(self) -> bool:
        """The guest stands still because it was asked to; its memory is in order."""
        ...

    async def rename(self, spec: DomainSpec) -> None:
        """The domain and its files are called so from now on. Raises PyxenError; then it may go on by the old name."""
        ...

    async def become(self, spec: DomainSpec, *, paused: bool) -> None:
        """What was started paused, and has been spoken to by nobody, is this domain from now on; unless ``paused`` it
        goes on.

        The specs differ in names alone: the domain's and its files', and what its guest is told of that.
        """
        ...

    async def suspend(self) -> None:
        """Have the guest put its devices in order and stand still; returns when it does.

        Raises Unsupported where guests can't be asked, EngineError if this one doesn't do it in time.
        """
        ...

    async def resume(self) -> None:
        """Let a suspended guest go on."""
        ...

    async def request_shutdown(self, reason: str) -> None:
        """Ask the guest to power off, reboot or halt (``poweroff``, ``reboot``, ``halt``). Does not wait for it.

        An engine that can only send a power button (QEMU) sends that; xend itself remembers that a reboot was meant.
        """
        ...

    async def destroy(self) -> None:
        """End the process and wait until it is gone. Never fails because it was gone before."""
        ...

    async def set_vcpus(self, count: int) -> None:
        """Ask the guest to use VCPUs 0 to ``count`` - 1, of ``spec.most_vcpus``. Does not wait for it.

        Raises Unsupported for fewer than there are, with ``vcpus_stay``.
        """
        ...

    @property
    def vcpus_stay(self) -> bool:
        """A VCPU that has come can't be taken away again: all a guest can do is not to use it."""
        ...

    async def set_memory(self, mib: int) -> None:
        """Ask the guest to shrink or grow to ``mib``, at most ``spec.most_memory_mib``. Does not wait for it."""
        ...

    async def set_max_memory(self, mib: int) -> None:
        """Let the guest have no more than ``mib``, as far as the monitor can hold it to that."""
        ...

    async def sysrq(self, key: str) -> None:
        """Press SysRq and ``key``, one printable ASCII character. Whether the guest does anything is its own affair."""
        ...

    async def trigger(self, trigger: Trigger, vcpu: int | None) -> None:
        """Send the guest an event of hardware, to one VCPU where that makes a difference. Raises Unsupported."""
        ...

    async def debug_key(self, key: str) -> list[str]:
        """What the hypervisor has to say of the domain when this key of Xen's is pressed. Raises Unsupported."""
        ...

    async def dump_core(self, file: int, *, live: bool = False) -> None:
        """Write the guest's memory and registers as an ELF core into the descriptor of an empty file.

        A running guest stands still meanwhile, also if xend dies; with ``live`` it runs on. Raises Unsupported.
        """
        ...

    async def screendump(self, file: int) -> None:
        """Write a picture of the guest's screen, as PNG, into the descriptor of an empty file. Raises Unsupported."""
        ...

    async def freeze(self) -> None:
        """Bring the guest to rest so that its state can be written. Raises Unsupported."""
        ...

    async def thaw(self) -> None:
        """Let a frozen guest go on, whether its state was written or not."""
        ...

    async def machine(self) -> str:
        """The model of the guest's machine: a reader of its state must have the same. Raises Unsupported."""
        ...

    async def save_state(self, stream: int) -> None:
        """Write a frozen guest's memory, VCPUs and devices, but not its disks, into a descriptor, from start to end.

        The guest goes on standing still. Raises EngineError, also when the stream's other end is closed.
        """
        ...

    @property
    def ends_agent_frames(self) -> bool:
        """Whether a frame for the agent that its caller leaves unfinished is ended by the engine."""
        ...

    @property
    def agents(self) -> Collection[AgentKind]:
        """The agents that are known to be there; one that isn't in it may be there where the monitor can't see it."""
        ...

    async def until_agent(self, kind: AgentKind) -> None:
        """Return when that agent is known to be there, or the guest has stopped."""
        ...

    async def agent(self, kind: AgentKind = AgentKind.PYXEN) -> socket.socket:
        """A connection, not blocking, to where the guest's agent answers if there is one (abi.agent, abi.qga).

        Raises Unsupported where no agent can be reached, Conflict if the guest has stopped.
        """
        ...

    async def send_live(
        self,
        stream: int,
        limits: Limits,
        progress: Callable[[Moving], None],
        copied: Callable[[], None] | None = None,
    ) -> None:
        """As ``save_state``, of a guest that runs while its memory is written, and is frozen for the last of it.

        An engine that can't do that freezes it first. If disks are being copied, ``copied`` is called when all that
        the frozen guest has written to them is in their copies, which it lets go of then. If this raises or is
        cancelled, ``abandon_copies`` and ``thaw`` let the guest go on.
        """
        ...

    async def copy_disk(self, vdev: str, bandwidth: int | None) -> None:
        """Begin to write a disk to the NBD export that its ``copy_socket`` leads to, and from then on what the guest
        writes, too; at most ``bandwidth`` bytes a second. Raises Unsupported.
        """
        ...

    async def copies(self) -> tuple[int, int, bool]:
        """Bytes that have been written of all such disks, bytes in all, and whether they are the same now.

        Raises EngineError if one can't be.
        """
        ...

    async def abandon_copies(self) -> None:
        """Let go of the copies, of no use as they are, and of a state that was about to be sent; before ``thaw``."""
        ...

    async def plug(self, device: Pluggable, spec: DomainSpec) -> None:
        """Give the guest a device; ``spec`` is the domain's from now on and has it. Does not wait for the guest.

        Raises Unsupported where devices can't come and go, EngineError; then nothing of it is left.
        """
        ...

    async def unplug(self, device: str, *, force: bool = False) -> None:
        """Ask the guest to let go of the device with this id. Does not wait for it: see ``on_unplugged``.

        With ``force`` it is taken away, whatever the guest does with it. Raises Unsupported where that can't be done.
        """
        ...

    def on_unplugged(self, callback: Callable[[str], None]) -> None:
        """Call ``callback``, on the event loop, with each device that has left, when what it stood on is free.

        Of an adopted domain also with those of its spec that are found not to be there.
        """
        ...

    async def change_disc(self, disk: Disk, spec: DomainSpec) -> None:
        """Put the disc that ``disk`` names into its CD-ROM drive, or none. ``spec`` is the domain's from now on."""
        ...

    async def limit(self, device: Disk | Vif, spec: DomainSpec) -> None:
        """Hold a device to the rates that it has now. ``spec`` is the domain's from now on.

        Raises Unsupported where it can't be held to them.
        """
        ...

    async def resize_disk(self, vdev: str, size: int) -> None:
        """Make a disk ``size`` bytes long, and tell the guest. Raises InvalidRequest if it is longer."""
        ...

    def statistics(self) -> Statistics: ...

    async def place(self, placement: Placement) -> None:
        """Have the process's threads run on these CPUs, now and for VCPUs that come. Raises InvalidRequest."""
        ...

    def share(self, shares: Shares) -> None:
        """Give the process this part of the CPUs. Raises Unsupported where the host can't hold it to that."""
        ...

    def weigh_io(self, weight: int) -> None:
        """Give the process this part of busy disks, 1 to 10000. Raises Unsupported where the host can't do that."""
        ...

    def affinities(self) -> Mapping[int, frozenset[int]]:
        """Where VCPUs may run by the kernel's word, those that have no thread now left out."""
        ...

    @property
    def one_thread(self) -> bool:
        """One thread runs all VCPUs in turn, so they can't be placed one by one."""
        ...

    async def trace(self, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Lines of api.TraceRecord until the domain ends, of these kinds (all if empty). Raises Unsupported."""
        ...

    def close(self) -> None:
        """Let go of watches and sockets; the domain runs on."""
        ...


class Engine(Protocol):
    """A kind of monitor."""

    name: str

    def info(self) -> EngineInfo:
        """Is it usable here, and why (not). May probe; the verdict is cached."""
        ...

    def accelerator(self, config: DomainConfig) -> str:
        """What the domain's code would run on: a guest's state can't be taken from one to another. May probe."""
        ...

    def check(self, config: DomainConfig) -> list[str]:
        """Refuse (Unsupported) what this engine can't do, before anything is made. Returns warnings."""
        ...

    def lay_out(self, spec: DomainSpec) -> DomainSpec:
        """The spec with what is left to the engine filled in: ``slots``. Those that are given stay as they are.

        Raises ResourceExhausted if there are more devices than the machine has places for.
        """
        ...

    async def start(
        self,
        spec: DomainSpec,
        directory: Path,
        *,
        paused: bool,
        state: int | None = None,
        late_disks: bool = False,
        template: Template | None = None,
        empty_disks: Sequence[str] = (),
    ) -> RunningDomain:
        """Start a domain in a fresh ``directory`` that holds the files listed above as far as xend makes them.

        With ``state`` the guest goes on from what ``save_state`` wrote, read from this descriptor up to its end.
        With ``late_disks`` (which goes with ``state`` and ``paused``) it doesn't touch its disks before it is unpaused:
        until then they are another process's. With a full ``template`` it goes on from there, sharing its memory; an
        empty one is first filled from ``state``. ``empty_disks``, by vdev, are written to through COPIES until the
        state is there.

        Returns when the monitor has accepted everything and (unless ``paused``) the guest runs.
        Raises EngineError with the monitor's words; then no process is left.
        """
        ...

    async def adopt(self, spec: DomainSpec, directory: Path) -> RunningDomain | None:
        """Take over a domain that an earlier xend started; None if no process of it is left and no event says why.

        A domain whose guest has stopped meanwhile is returned with ``stopped`` set, from ``events``.
        """
        ...

    def reap(self, directory: Path) -> None:
        """Kill whatever process belongs to ``directory`` (half-made or lost), known by its command line."""
        ...
