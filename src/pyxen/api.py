"""What goes over HTTP between xend and its clients: the bodies, and the table of paths.

All paths are below ``/v1``. ``{domain}`` is a name, an id or a UUID, looked up in Xen's order: running by name,
managed by name, running by id, by UUID; a name wins over an id. Errors are ``application/problem+json``
(:class:`Problem`).

    GET    /v1/host                        Host
    GET    /v1/host/topology               HostTopology
    GET    /v1/version                     Version
    GET    /v1/domains                     DomainList
    POST   /v1/domains                     CreateRequest → 201 Domain        (create: transient; or managed)
    GET    /v1/domains/{domain}            Domain
    DELETE /v1/domains/{domain}            204            forget a managed domain that is not running
    POST   /v1/domains/{domain}/start      StartRequest → Domain
    POST   /v1/domains/{domain}/shutdown   ShutdownRequest → 202 Domain      (asks the guest; does not wait)
    POST   /v1/domains/{domain}/destroy    Domain
    POST   /v1/domains/{domain}/pause      Domain
    POST   /v1/domains/{domain}/unpause    Domain
    POST   /v1/domains/{domain}/suspend    Domain         (the guest puts itself in order and stands still)
    POST   /v1/domains/{domain}/resume     Domain
    POST   /v1/domains/{domain}/rename     RenameRequest → Domain
    GET    /v1/domains/{domain}/vcpus      VcpuList
    POST   /v1/domains/{domain}/set-vcpus  SetVcpusRequest → 202 Domain      (asks the guest, as the next two do)
    POST   /v1/domains/{domain}/set-memory SetMemoryRequest → 202 Domain
    POST   /v1/domains/{domain}/set-maxmem SetMaxmemRequest → Domain
    POST   /v1/domains/{domain}/pin-vcpus  PinVcpusRequest → Domain
    POST   /v1/domains/{domain}/set-credit SetCreditRequest → Domain
    POST   /v1/domains/{domain}/set-pool   SetPoolRequest → Domain
    POST   /v1/domains/{domain}/sysrq      SysrqRequest → 202 Domain
    POST   /v1/domains/{domain}/trigger    TriggerRequest → 202 Domain
    POST   /v1/domains/{domain}/dump-core  DumpRequest → CoreDump            (when it has been written)
    GET    /v1/domains/{domain}/screen     image/png, what its screen shows
    POST   /v1/domains/{domain}/snapshots  SnapshotRequest → 201 Snapshot    (when it is whole)
    GET    /v1/domains/{domain}/snapshots  SnapshotList
    POST   /v1/domains/{domain}/snapshots/{snapshot}/revert RevertRequest → Domain
    DELETE /v1/domains/{domain}/snapshots/{snapshot} 204
    POST   /v1/domains/{domain}/clone      CloneRequest → 201 Domain
    GET    /v1/snapshots                   SnapshotList, all domains'
    WS     /v1/domains/{domain}/console    see below
    WS     /v1/domains/{domain}/agent      a command or a file of the guest, see below
    WS     /v1/run                         a command with a domain of its own, see below
    GET    /v1/domains/{domain}/trace      application/x-ndjson of TraceRecord ``?only=KIND`` (repeated)
    GET    /v1/cpupools                    CpuPoolList
    POST   /v1/cpupools                    CreateCpuPoolRequest → 201 CpuPool
    DELETE /v1/cpupools/{pool}             204
    POST   /v1/cpupools/{pool}/add-cpus    CpuPoolCpusRequest → CpuPool
    POST   /v1/cpupools/{pool}/remove-cpus CpuPoolCpusRequest → CpuPool
    POST   /v1/split-cpupools              CpuPoolList
    GET    /v1/xenstore                    StoreTree ``?path=PATH``: a node and all below it
    GET    /v1/xenstore/node               StoreNode ``?path=PATH``
    POST   /v1/xenstore/write              StoreWrite → 204
    POST   /v1/xenstore/remove             StoreRemove → 204
    POST   /v1/xenstore/permissions        StorePermissions → 204
    GET    /v1/xenstore/watch              application/x-ndjson of StoreEvent ``?path=PATH`` (repeated), without end
    GET    /v1/events                      text/event-stream of Event; ``?after=SEQUENCE`` replays what is still kept
    GET    /v1/log                         text/plain, xend's log        ``?tail=N`` lines
    GET    /v1/dmesg                       text/plain, the engine's ring (probe verdict, domain starts and stops)
    POST   /v1/debug-keys                  DebugKeysRequest → 204            (what is said comes into dmesg)
    GET    /v1/images                      ImageList
    POST   /v1/images/{image}/build        BuildRequest → application/x-ndjson of Progress, the last has ``done``
    DELETE /v1/images/{image}              204
    GET    /v1/schema/domain               JSON schema of DomainConfig
    GET    /v1/openapi.json                OpenAPI 3.1

Console (WebSocket): the server first sends a text message ``{"offset": N}``: the byte offset of what follows in
the domain's whole output; then binary messages of output: first a replay of at most the last 64 KiB (or, with
``?after=OFFSET``, all kept output from that offset on), then live. Binary messages from the client are typed into
the guest. A text message ``{"event": "ended", "reason": "poweroff"}`` precedes the close when the domain goes away;
close code 1000. Several clients may be connected at once; each sees all output, input is merged. With ``?wait=1``
the connection outlives a restart of the domain: ``{"event": "restarted", "domid": N, "offset": 0}``.

Agent (WebSocket): one command or one file for each connection. The client first sends an AgentRequest as text. The
server answers with AgentEvents as text, ``started`` or ``error`` first, ``ended`` or ``error`` last, then it closes.
Output comes in binary messages, each with a first byte that says which: 1 standard output (or the file), 2 errors.
Binary messages from the client are the command's standard input (or the file), AgentInput as text the rest. How many
of them the command has taken comes as ``taken``. A client that goes away hangs up on its command.

Run (WebSocket): the same with a domain that is started for the command and ends before ``ended`` is said, or when the
client goes away. The client first sends a RunRequest; ``step`` and ``running`` come before ``started``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from pyxen.config.model import DomainConfig, Mib, Name, VcpuCount

API_VERSION = "v1"


class PowerState(StrEnum):
    """Xen's power states; ``status`` in its S-expressions."""

    HALTED = "halted"
    PAUSED = "paused"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"


class ShutdownReason(StrEnum):
    """Why a domain stopped, in the words of Xen's SCHEDOP_shutdown and of xenstore's control/shutdown."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"
    WATCHDOG = "watchdog"
    HALT = "halt"
    DESTROYED = "destroyed"
    """By xend, on somebody's order."""
    FAILED = "failed"
    """The monitor's process died under the domain."""


class AgentKind(StrEnum):
    """Agents that a guest may have."""

    PYXEN = "pyxen"
    """Our own."""
    QEMU = "qemu"
    """QEMU's guest agent."""


class Trigger(StrEnum):
    """Events of hardware, in the words of xl's trigger."""

    NMI = "nmi"
    RESET = "reset"
    INIT = "init"
    POWER = "power"
    SLEEP = "sleep"
    S3RESUME = "s3resume"


class Problem(Struct, omit_defaults=True):
    """RFC 9457."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    code: str = ""
    hint: str | None = None
    key: str | None = None


class Version(Struct):
    version: str
    api: str = API_VERSION


class Vcpu(Struct):
    number: int
    online: bool
    state: str
    """Three letters as in xm vcpu-list: ``r--``, ``-b-``, ``--p``."""
    cpu: int | None
    """The host CPU it ran on last."""
    time_s: float
    affinity: list[int] | None = None
    """Host CPUs it may run on; None: any."""
    soft_affinity: list[int] | None = None
    """Host CPUs it should prefer, as far as anybody minds; None: any."""


class VcpuList(Struct):
    domid: int | None
    name: str
    vcpus: list[Vcpu]


class Domain(Struct):
    """A domain as it is now."""

    domid: int | None
    """None for a managed domain that isn't running."""
    name: str
    uuid: str
    power_state: PowerState
    state: str
    """Six positions ``rbpscd``: running, blocked, paused, shutdown, crashed, dying; empty when not running."""
    managed: bool
    memory_mib: int
    """What the guest has; ``config.memory`` is what it was told to have."""
    maxmem_mib: int
    vcpus: int
    """Those that are online; ``config.vcpus`` is how many it was told to use."""
    maxvcpus: int
    cpu_time_s: float
    created_at: float
    """Seconds since 1970."""
    started_at: float | None = None
    engine: str | None = None
    """``qemu``, ``xen``; None when not running (and for Domain-0: ``host``)."""
    accelerator: str | None = None
    pid: int | None = None
    restart_count: int = 0
    shutdown_reason: ShutdownReason | None = None
    """Of a domain that is preserved, or a managed one's last stop."""
    paused_reason: str | None = None
    """Why it is paused though nobody has asked for that: a disk of it is full on the host, or xend's own is, and it
    can't be restarted yet."""
    silent: bool = False
    """The boot watchdog has heard nothing."""
    vnc: str | None = None
    """``ADDRESS:DISPLAY`` where there is a VNC server."""
    gdb: str | None = None
    """The socket to which gdb can connect."""
    forwards: list[str] = field(default_factory=list)
    """User-mode port forwards, ``tcp 127.0.0.1:2222 -> 22``."""
    agent: AgentKind | None = None
    """The guest's, that xend asks; None: none is known to be there."""
    warnings: list[str] = field(default_factory=list)
    jail: list[str] = field(default_factory=list)
    """What confines the domain's process (docs/security.md)."""
    config: DomainConfig | None = None
    """What the user asked for; None for Domain-0."""


class DomainList(Struct):
    domains: list[Domain]


class CreateRequest(Struct, forbid_unknown_fields=True):
    config: DomainConfig
    paused: bool = False
    managed: bool = False
    """Define only (xm new); start it later."""


class StartRequest(Struct, forbid_unknown_fields=True):
    paused: bool = False


class ShutdownRequest(Struct, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(pattern=r"^(poweroff|reboot|halt)$(?!\n)")] = "poweroff"


class RenameRequest(Struct, forbid_unknown_fields=True):
    name: Name


class SetVcpusRequest(Struct, forbid_unknown_fields=True):
    count: VcpuCount
    """The guest is to use VCPUs 0 to ``count`` - 1. Of a domain that isn't running: ``vcpus`` of its description."""


class SetMemoryRequest(Struct, forbid_unknown_fields=True):
    memory_mib: Mib
    """The guest's balloon is to leave it so much. Of a domain that isn't running: ``memory`` of its description."""


class SetMaxmemRequest(Struct, forbid_unknown_fields=True):
    maxmem_mib: Mib
    """The most that may be asked for. A running domain can't get more than it was started for."""


HostPath = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^/[^\x00]*$(?!\n)")]
"""An absolute path on xend's machine."""


class SysrqRequest(Struct, forbid_unknown_fields=True):
    key: Annotated[str, Meta(pattern=r"^[!-~]$(?!\n)", description="what is pressed together with SysRq")]


class DebugKeysRequest(Struct, forbid_unknown_fields=True):
    keys: Annotated[str, Meta(pattern=r"^[!-~]{1,32}$(?!\n)", description="keys of Xen's, one after the other")]


class TriggerRequest(Struct, forbid_unknown_fields=True):
    trigger: Trigger
    vcpu: Annotated[int, Meta(ge=0, le=511)] | None = None
    """None: all, or whichever it is for."""


class DumpRequest(Struct, forbid_unknown_fields=True):
    path: HostPath | None = None
    """An absolute path on xend's machine; None: one in xend's own folder."""
    live: bool = False
    """Don't pause the guest; the memory in the core is then of no one moment."""
    crash: bool = False
    """Destroy the domain afterwards."""
    reset: bool = False
    """Reset it afterwards."""


class CoreDump(Struct):
    """A core that has been written."""

    name: str
    path: str
    disk_bytes: int
    """What it takes on the disk: pages of zeros take nothing."""


class SaveRequest(Struct, forbid_unknown_fields=True):
    path: HostPath
    checkpoint: bool = False
    """Let the domain go on afterwards, rather than end it."""


class SavedState(Struct):
    """A domain's state that has been written."""

    name: str
    path: str
    disk_bytes: int


class RestoreRequest(Struct, forbid_unknown_fields=True):
    path: HostPath
    paused: bool = False


class MigrateRequest(Struct, forbid_unknown_fields=True):
    host: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_.:%-]+$(?!\n)")]
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """None: 8002."""
    live: bool = True
    """Send the memory while the guest runs, rather than pause it first."""
    dry: bool = False
    """Only see if the domain would fit there."""
    bandwidth_mib: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    """MiB a second at most."""
    downtime_ms: Annotated[int, Meta(ge=1, le=2_000_000)] = 300
    """The guest is stopped when the rest can be sent in this time."""
    copy_disks: bool = False
    """Copy the disks that the hosts don't share."""
    converge: bool = True
    """Slow the guest down if it changes memory faster than that can be sent."""


class Migrated(Struct):
    """A domain that runs on another host now."""

    name: str
    host: str
    domid: int
    total_s: float
    downtime_s: float
    """From the guest's stop to the other host's word that it runs."""
    sent_bytes: int
    rounds: int


class Peer(Struct):
    """Another xend that is trusted: domains may go there and come from there."""

    name: str
    fingerprint: str
    """SHA-256 of its certificate."""


class PeerList(Struct):
    certificate: str
    """This xend's own, as PEM: what the others are shown."""
    fingerprint: str
    peers: list[Peer]


class PeerRequest(Struct, forbid_unknown_fields=True):
    certificate: Annotated[str, Meta(max_length=65536)]


class EngineInfo(Struct):
    name: str
    available: bool
    reason: str
    """Why it was (not) chosen, in a sentence."""
    version: str = ""


class Host(Struct):
    """xm info."""

    host: str
    release: str
    version: str
    machine: str
    nr_cpus: int
    nr_nodes: int
    cores_per_socket: int
    threads_per_core: int
    cpu_mhz: float
    cpu_model: str
    virt_caps: str
    total_memory_mib: int
    free_memory_mib: int
    sharing_freed_mib: int
    """What the host saves by keeping equal pages once."""
    sharing_used_mib: int
    """What those pages take that stand for several."""
    sharing: bool
    """The host's KSM runs: domains with ``memory_sharing`` share pages."""
    uptime_s: float
    pyxen_version: str
    domains_running: int
    clones_waiting: int
    """QEMUs that stand ready to become clones of snapshots; what they take of the host's memory isn't free."""
    accelerator: str
    """What ``accel = auto`` gives on this host: kvm or tcg."""
    kvm_verdict: str
    """What the probe saw, in a sentence."""
    engines: list[EngineInfo]
    state_root: str
    run_root: str


class HostCpu(Struct):
    number: int
    core: int
    socket: int
    node: int


class HostNode(Struct):
    """A NUMA node."""

    number: int
    memory_mib: int
    free_mib: int
    distances: list[int]
    """To the nodes, in the order of their numbers; 10 is itself."""


class HostTopology(Struct):
    """xm info -n."""

    cpus: list[HostCpu]
    nodes: list[HostNode]


class Image(Struct):
    name: str
    kind: str
    """tiny, debian."""
    size_bytes: int
    created_at: float
    kernel_release: str
    kernel: str
    ramdisk: str | None = None
    cmdline: str = ""
    root_disk: str | None = None


class ImageList(Struct):
    images: list[Image]
    buildable: list[str]


class BuildRequest(Struct, forbid_unknown_fields=True):
    force: bool = False
    """Build again though it is there."""
    options: dict[str, str] = field(default_factory=dict)


class Progress(Struct, omit_defaults=True):
    """One step of a long job. ``fraction`` from 0 to 1 where it is known."""

    step: str
    fraction: float | None = None
    done: bool = False
    error: Problem | None = None
    image: Image | None = None
    migrated: Migrated | None = None


class Event(Struct, omit_defaults=True):
    """A change that xend saw or made. ``kind`` is a lower-case past phrase."""

    sequence: int
    time: float
    kind: str
    """domain-defined, -started, -start-failed, -adopted, -lost, -paused, -unpaused, -suspended, -resumed, -renamed,
    -silent, -shutdown-requested, -unresponsive, -stopped (``data.action`` says what follows), -vcpus-set, -memory-set,
    -maxmem-set, -device-attached, -device-detached, -disc-changed, -disk-resized, -vcpus-pinned, -credit-set,
    -pool-set, -ballooned, -sysrq-sent, -triggered, -dumped, -preserved, -saved, -restored, -migrated, -arrived,
    -offline, -restarted, -restart-refused, -restart-failed, -ended, -deleted, -reverted, -cloned; snapshot-created,
    -removed; image-built, image-removed; cpupool-created, -changed, -destroyed; xend-started, xend-stopping;
    events-lost (older ones are no longer kept)."""
    domid: int | None = None
    name: str | None = None
    uuid: str | None = None
    reason: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


TRACE_KINDS = ("hypercall", "port", "mmio", "msr", "exit", "event", "timer", "xenstore")
"""Kinds of TraceRecord that can be asked for; ``exit`` is any that has no kind of its own."""


class TraceRecord(Struct, omit_defaults=True):
    """One thing that a domain asked of its hypervisor, or was told by it.

    In ``args`` and ``out`` numbers are numbers, constants their names in Xen, and addresses, frame numbers and bits
    are hexadecimal text. ``lost`` stands for ``count`` records that came faster than they were read; ``end`` is the
    last one and its ``name`` says why the domain ended.
    """

    kind: str
    """One of TRACE_KINDS, ``lost`` or ``end``."""
    name: str = ""
    """The hypercall, ``in`` or ``out``, ``rdmsr``, xenstore's request, …"""
    op: str = ""
    """A hypercall's sub-operation."""
    time_s: float = 0.0
    """When it began, in seconds since the tracing did."""
    vcpu: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    out: dict[str, Any] = field(default_factory=dict)
    """What was written in answer."""
    result: int | None = None
    """What the guest got in its register."""
    error: str | None = None
    """``ENOSYS`` and the like."""
    us: float | None = None
    """How long it took, in microseconds."""
    count: int = 0


class StoreNode(Struct, omit_defaults=True):
    """A node of xenstore. ``value`` is escaped as xenstore-read does: bytes that aren't printable are ``\\xNN``."""

    path: str
    value: str = ""
    permissions: list[str] = field(default_factory=list)
    """``n0``, ``r5``: the owner with what all others may do, then single domains."""
    children: list[str] = field(default_factory=list)
    """Names, in the store's order."""


class StoreTree(Struct):
    """Nodes, each before those below it."""

    nodes: list[StoreNode]


class StoreWrite(Struct, forbid_unknown_fields=True):
    values: dict[str, str]
    """Escaped values by path; of one domain's nodes all are written or none."""


class StoreRemove(Struct, forbid_unknown_fields=True):
    path: str
    tidy: bool = False
    """Remove nodes above it too, as long as they have neither value nor children."""


class StorePermissions(Struct, forbid_unknown_fields=True):
    path: str
    permissions: list[str]
    recurse: bool = False
    """All nodes below it too."""
    upwards: bool = False
    """The nodes above it too."""


class StoreEvent(Struct):
    """A watched node, or one below it, has changed (or, once at the start, is watched now)."""

    path: str
    watched: str
