"""The synchronous client: what xm and most scripts use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pyxen import agent_api, api, device_api, run_api, scheduling_api, snapshot_api
from pyxen.abi.xs_text import unescape
from pyxen.client import _calls
from pyxen.client._calls import Call
from pyxen.client.transport import DEFAULT_TIMEOUT_S, Address, Transport, find_address
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.errors import Unavailable

if TYPE_CHECKING:
    from pyxen.client.agent import Command
    from pyxen.client.console import Console

T = TypeVar("T")
_HEARTBEAT_S = 45.0
"""xend says something on the event stream every 15 s; three times that is silence."""


class Client:
    """Typed calls on one xend.

    ``ref`` is a domain's name, id or UUID. Every call raises a :class:`pyxen.errors.PyxenError`: DomainNotFound
    for an unknown ``ref``, Unavailable if xend is not there, OutcomeUnknown if the answer to an order was lost.
    ``patience_s``: for so many seconds a question (never an order) is asked again while xend is away, as in a restart.
    """

    def __init__(
        self, address: Address | None = None, *, timeout: float | None = DEFAULT_TIMEOUT_S, patience_s: float = 0
    ) -> None:
        self.address = address or find_address()
        self._transport = Transport(self.address, timeout=timeout)
        self._timeout = timeout
        self._patience_s = patience_s

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next call connects again."""
        self._transport.close()

    def patient(self, seconds: float) -> Client:
        """A client of the same xend that asks again for ``seconds`` while xend is away."""
        return Client(self.address, timeout=self._timeout, patience_s=seconds)

    def host(self) -> api.Host:
        return self._call(_calls.host())

    def topology(self) -> api.HostTopology:
        """The host's CPUs and NUMA nodes."""
        return self._call(_calls.topology())

    def version(self) -> api.Version:
        return self._call(_calls.version())

    def domains(self) -> list[api.Domain]:
        """Domain-0 first, then by name; managed ones that are not running included."""
        return self._call(_calls.domains()).domains

    def domain(self, ref: str) -> api.Domain:
        return self._call(_calls.domain(ref))

    def create(self, config: DomainConfig, *, paused: bool = False, managed: bool = False) -> api.Domain:
        """Start a domain that is forgotten when it ends, or with ``managed`` define one that is kept."""
        return self._call(_calls.create(config, paused=paused, managed=managed))

    def start(self, ref: str, *, paused: bool = False) -> api.Domain:
        """Start a managed domain."""
        return self._call(_calls.start(ref, paused=paused))

    def shutdown(self, ref: str, reason: str = "poweroff") -> api.Domain:
        """Ask the guest to ``poweroff``, ``reboot`` or ``halt``; does not wait for it."""
        return self._call(_calls.shutdown(ref, reason))

    def destroy(self, ref: str) -> api.Domain:
        """End a domain at once."""
        return self._call(_calls.destroy(ref))

    def pause(self, ref: str) -> api.Domain:
        return self._call(_calls.pause(ref))

    def unpause(self, ref: str) -> api.Domain:
        return self._call(_calls.unpause(ref))

    def set_vcpus(self, ref: str, count: int) -> api.Domain:
        """Ask the guest to use VCPUs 0 to ``count`` - 1; does not wait for it."""
        return self._call(_calls.set_vcpus(ref, count))

    def set_memory(self, ref: str, memory_mib: int) -> api.Domain:
        """Ask the guest to shrink or grow to ``memory_mib``; does not wait for it."""
        return self._call(_calls.set_memory(ref, memory_mib))

    def set_maxmem(self, ref: str, maxmem_mib: int) -> api.Domain:
        """Set the most memory that the domain may be given."""
        return self._call(_calls.set_maxmem(ref, maxmem_mib))

    def devices(self, ref: str) -> device_api.DeviceList:
        """A domain's devices that come and go: disks, network interfaces, PCI and USB devices."""
        return self._call(_calls.devices(ref))

    def guest_interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        """A guest's network interfaces and addresses, as its agent has them; none where no agent says."""
        return self._call(_calls.guest_interfaces(ref))

    def attach_disk(self, ref: str, disk: Disk) -> api.Domain:
        """Give a domain a disk: a running one at once, a managed one that doesn't run at its next start."""
        return self._call(_calls.attach_disk(ref, disk))

    def detach_disk(self, ref: str, vdev: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a disk (``xvdb``, or its number); returns when it has.

        With ``force`` it is taken away whatever the guest does with it; only the Xen engine can.
        """
        return self._call(_calls.detach_disk(ref, vdev, force))

    def change_disc(self, ref: str, vdev: str, target: str | None = None) -> api.Domain:
        """Put a disc, an image on xend's machine, into a CD-ROM drive; None: take out the one that is there."""
        return self._call(_calls.change_disc(ref, vdev, target))

    def resize_disk(self, ref: str, vdev: str, size_bytes: int) -> api.Domain:
        """Make a running domain's disk longer."""
        return self._call(_calls.resize_disk(ref, vdev, size_bytes))

    def limit_disk(self, ref: str, vdev: str, rate: int | None = None, iops: int | None = None) -> api.Domain:
        """Let a disk do no more than so many bytes and requests a second. 0: no limit; None: as it is."""
        return self._call(_calls.limit_disk(ref, vdev, rate, iops))

    def limit_vif(self, ref: str, vif: str, rate: int) -> api.Domain:
        """Let a domain send no more than so many bytes a second over an interface. 0: no limit."""
        return self._call(_calls.limit_vif(ref, vif, rate))

    def attach_vif(self, ref: str, vif: Vif) -> api.Domain:
        """Give a domain a network interface."""
        return self._call(_calls.attach_vif(ref, vif))

    def detach_vif(self, ref: str, vif: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a network interface, by its number or MAC; returns when it has.

        ``force`` is as in ``detach_disk``.
        """
        return self._call(_calls.detach_vif(ref, vif, force))

    def host_pci(self) -> device_api.HostPciDevices:
        """The host's PCI devices, and which of them domains may have."""
        return self._call(_calls.host_pci())

    def host_usb(self) -> device_api.HostUsbDevices:
        """The host's USB devices."""
        return self._call(_calls.host_usb())

    def make_pci_assignable(self, address: str) -> None:
        """Take a PCI device of the host from its driver, so that domains may have it."""
        self._call(_calls.change_host_pci(address, "make-assignable"))

    def give_pci_back(self, address: str) -> None:
        """Let the host's driver have a PCI device again."""
        self._call(_calls.change_host_pci(address, "give-back"))

    def attach_pci(self, ref: str, pci: PciDevice) -> api.Domain:
        """Give a domain an assignable PCI device of the host, at once or at its next start."""
        return self._call(_calls.attach_pci(ref, pci))

    def detach_pci(self, ref: str, address: str) -> api.Domain:
        """Have the guest let go of a PCI device, by its address on the host; returns when it has."""
        return self._call(_calls.detach_pci(ref, address))

    def attach_usb(self, ref: str, usb: UsbDevice) -> api.Domain:
        """Give a domain a USB device, at once or at its next start."""
        return self._call(_calls.attach_usb(ref, usb))

    def detach_usb(self, ref: str, which: str) -> api.Domain:
        """Unplug a USB device, by its number, or a host's by ``BUS.ADDRESS`` or ``VENDOR:PRODUCT``."""
        return self._call(_calls.detach_usb(ref, which))

    def pin_vcpus(
        self, ref: str, vcpu: int | None = None, *, cpus: str | None = None, soft: str | None = None
    ) -> api.Domain:
        """Say which of the host's CPUs a VCPU (None: each) may run on, and should: ``0-3,^1``, ``all``, ``nodes:0``.

        None leaves it as it is. What the host can't hold the domain to is in the answer's ``warnings``.
        """
        return self._call(_calls.pin_vcpus(ref, vcpu, cpus, soft))

    def set_credit(self, ref: str, *, weight: int | None = None, cap: int | None = None) -> api.Domain:
        """Set a domain's weight (1 to 65535) and cap (percent of one CPU, 0: none). None leaves it as it is."""
        return self._call(_calls.set_credit(ref, weight, cap))

    def set_io_weight(self, ref: str, weight: int) -> api.Domain:
        """Set a domain's part of the host's busy disks, 1 to 10000."""
        return self._call(_calls.set_io_weight(ref, weight))

    def snapshots(self, ref: str | None = None) -> list[snapshot_api.Snapshot]:
        """A domain's snapshots, or all, the oldest first."""
        return self._call(_calls.snapshots(ref)).snapshots

    def create_snapshot(self, ref: str, name: str, *, quiesce: bool = False) -> snapshot_api.Snapshot:
        """Keep a running domain's memory and disks as they are now; it stands still meanwhile."""
        return self._call(_calls.create_snapshot(ref, name, quiesce=quiesce))

    def revert(self, ref: str, snapshot: str, *, paused: bool = False) -> api.Domain:
        """Take a domain back to a snapshot, whether it runs or not."""
        return self._call(_calls.revert(ref, snapshot, paused=paused))

    def remove_snapshot(self, ref: str, snapshot: str) -> None:
        self._call(_calls.remove_snapshot(ref, snapshot))

    def clone(
        self, ref: str, name: str, snapshot: str | None = None, *, paused: bool = False, managed: bool = False
    ) -> api.Domain:
        """Start a new domain from a snapshot, or from what a running domain is now."""
        return self._call(_calls.clone(ref, name, snapshot, paused=paused, managed=managed))

    def set_pool(self, ref: str, pool: str) -> api.Domain:
        """Move a domain to another CPU pool."""
        return self._call(_calls.set_pool(ref, pool))

    def cpupools(self) -> scheduling_api.CpuPoolList:
        """The CPU pools, Pool-0 first, and CPUs that are in none."""
        return self._call(_calls.cpupools())

    def create_cpupool(self, name: str, cpus: str | None = None) -> scheduling_api.CpuPool:
        """Make a pool of CPUs that are free (None: of one of them)."""
        return self._call(_calls.create_cpupool(name, cpus))

    def destroy_cpupool(self, name: str) -> None:
        """End a pool without domains; its CPUs are free then."""
        self._call(_calls.destroy_cpupool(name))

    def add_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        """Put free CPUs into a pool."""
        return self._call(_calls.change_cpupool(pool, "add-cpus", cpus))

    def remove_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        """Take CPUs out of a pool; they are free then."""
        return self._call(_calls.change_cpupool(pool, "remove-cpus", cpus))

    def split_cpupools(self) -> scheduling_api.CpuPoolList:
        """Make a pool of each NUMA node."""
        return self._call(_calls.split_cpupools())

    def sysrq(self, ref: str, key: str) -> api.Domain:
        """Press SysRq and ``key`` in the guest."""
        return self._call(_calls.sysrq(ref, key))

    def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None = None) -> api.Domain:
        """Send the guest an event of hardware."""
        return self._call(_calls.trigger(ref, trigger, vcpu))

    def dump_core(
        self, ref: str, path: str | None = None, *, live: bool = False, crash: bool = False, reset: bool = False
    ) -> api.CoreDump:
        """Write an ELF core to ``path``, absolute and on xend's machine; returns when it is written.

        The guest is paused meanwhile unless ``live``. Then the domain goes on, or is destroyed (``crash``), or reset.
        """
        return self._call(_calls.dump_core(ref, path, live=live, crash=crash, reset=reset))

    def save(self, ref: str, path: str, *, checkpoint: bool = False) -> api.SavedState:
        """Write the domain's state to ``path``, absolute and on xend's machine; returns when it is written.

        The domain then ends, or goes on with ``checkpoint``.
        """
        return self._call(_calls.save(ref, path, checkpoint=checkpoint))

    def restore(self, path: str, *, paused: bool = False) -> api.Domain:
        """Start a domain from what ``save`` has written."""
        return self._call(_calls.restore(path, paused=paused))

    def migrate(self, ref: str, host: str, **options: Any) -> Iterator[api.Progress]:
        """Move a running domain to another host; yields its steps, the last has ``done`` and ``migrated``.

        ``options`` are the fields of :class:`pyxen.api.MigrateRequest`. Leaving the iterator calls it off; a
        domain that can't be moved goes on here.
        """
        call = _calls.migrate(ref, _calls.migrate_request(host, options))
        with self._transport.stream(call) as (status, lines):
            if status >= 300:
                raise _calls.problem(status, b"".join(lines), ref=ref)
            for line in lines:
                if step := _calls.progress(line):
                    yield step
                    if step.done:
                        return
        raise Unavailable(f"xend went away while it moved '{ref}'", hint="See where it is: xm list, here and there.")

    def cancel_migration(self, ref: str) -> api.Domain:
        """Call a migration off; returns when the domain goes on here."""
        return self._call(_calls.cancel_migration(ref))

    def keep(self, ref: str) -> api.Domain:
        """Let a domain go on here that was given to a host which will never answer, and certainly doesn't run it."""
        return self._call(_calls.keep(ref))

    def peers(self) -> api.PeerList:
        """Other hosts that are trusted, and this one's certificate."""
        return self._call(_calls.peers())

    def add_peer(self, name: str, certificate: str) -> api.Peer:
        """Trust another host by its certificate, which is PEM."""
        return self._call(_calls.add_peer(name, certificate))

    def remove_peer(self, name: str) -> None:
        self._call(_calls.remove_peer(name))

    def rename(self, ref: str, name: str) -> api.Domain:
        return self._call(_calls.rename(ref, name))

    def suspend(self, ref: str) -> api.Domain:
        """Have the guest put its devices in order and stand still; returns when it does."""
        return self._call(_calls.suspend(ref))

    def resume(self, ref: str) -> api.Domain:
        """Let a suspended guest go on."""
        return self._call(_calls.resume(ref))

    def delete(self, ref: str) -> None:
        """Forget a managed domain that is not running."""
        self._call(_calls.delete(ref))

    def vcpus(self, ref: str) -> api.VcpuList:
        return self._call(_calls.vcpus(ref))

    def screen(self, ref: str) -> bytes:
        """What a domain's screen shows, as PNG."""
        return self._call(_calls.screen(ref))

    def log(self, tail: int | None = None) -> str:
        """xend's log, or its last ``tail`` lines."""
        return self._call(_calls.log(tail))

    def dmesg(self) -> str:
        return self._call(_calls.dmesg())

    def debug_keys(self, keys: str) -> None:
        """Press keys of Xen's: what the domains' hypervisors say of themselves comes into ``dmesg``."""
        self._call(_calls.debug_keys(keys))

    def images(self) -> api.ImageList:
        return self._call(_calls.images())

    def remove_image(self, name: str) -> None:
        self._call(_calls.remove_image(name))

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a domain's description."""
        return self._call(_calls.schema())

    def build_image(
        self, name: str, *, force: bool = False, options: dict[str, str] | None = None
    ) -> Iterator[api.Progress]:
        """Build an image; yields its steps, the last has ``done``. Leaving the iterator ends the build."""
        call = _calls.build_image(name, force=force, options=options or {})
        with self._transport.stream(call) as (status, lines):
            if status >= 300:
                raise _calls.problem(status, b"".join(lines))
            for line in lines:
                if step := _calls.progress(line):
                    yield step
                    if step.done:
                        return
        raise Unavailable(f"xend went away while it built image '{name}'", hint=f"Again: xm image build {name}")

    def events(self, after: int | None = None) -> Iterator[api.Event]:
        """What happens from now on, or after the event number ``after``, without end.

        A patient client goes on where it was when xend comes back.
        """
        deadline = None
        while True:
            try:
                with self._transport.stream(_calls.events(after), timeout=_HEARTBEAT_S) as (status, lines):
                    if status >= 300:
                        raise _calls.problem(status, b"".join(lines))
                    deadline = None
                    reader = _calls.EventLines()
                    for line in lines:
                        if event := reader.feed(line):
                            after = event.sequence
                            yield event
                raise Unavailable("xend has ended the event stream")
            except Unavailable:
                deadline = deadline or time.monotonic() + self._patience_s
                if time.monotonic() >= deadline:
                    raise
                time.sleep(min(0.2, self._patience_s))

    def console(self, ref: str, *, wait: bool = False) -> Console:
        """The console of a running domain; see :class:`pyxen.client.console.Console`."""
        from pyxen.client.console import Console

        return Console(self.address, ref, wait=wait)

    def command(self, ref: str, request: agent_api.AgentRequest) -> Command:
        """A command in a guest, or a file, as a stream; see :class:`pyxen.client.agent.Command`."""
        from pyxen.client.agent import Command

        return Command(self.address, ref, request)

    def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: bytes = b"",
        wait_s: float = agent_api.AGENT_WAIT_S,
    ) -> agent_api.ExecResult:
        """Run a command in a guest, by its agent, to its end."""
        with self.command(ref, _calls.exec_request(argv, env, cwd, wait_s)) as command:
            return command.finish([stdin])

    def sandbox(self, request: run_api.RunRequest, told: Callable[[agent_api.AgentEvent], None]) -> Command:
        """A command in a domain of its own, with this host's files, that ends with it; ``told`` hears of its start."""
        from pyxen.client.agent import Command

        return Command(self.address, None, request, told)

    def run(self, request: run_api.RunRequest, stdin: bytes = b"") -> agent_api.ExecResult:
        """The same to its end."""
        with self.sandbox(request, lambda event: None) as command:
            return command.finish([stdin])

    def read_file(self, ref: str, path: str, *, wait_s: float = agent_api.AGENT_WAIT_S) -> bytes:
        """A file of a guest. Raises NotFound."""
        with self.command(ref, agent_api.ReadFileRequest(path, wait_s)) as command:
            return command.finish().stdout

    def write_file(
        self, ref: str, path: str, data: bytes, *, mode: int = 0o644, wait_s: float = agent_api.AGENT_WAIT_S
    ) -> None:
        """Make or replace a file in a guest; ``mode`` is for a new one."""
        with self.command(ref, agent_api.WriteFileRequest(path, mode, wait_s)) as command:
            command.finish([data])

    def follow_log(self, tail: int | None = None) -> Iterator[str]:
        """xend's log, or its last ``tail`` lines, and then each line as it is written, until xend ends."""
        with self._transport.stream(_calls.follow_log(tail)) as (status, lines):
            if status >= 300:
                raise _calls.problem(status, b"".join(lines))
            for line in lines:
                yield line.decode(errors="replace").rstrip("\n")

    def trace(self, ref: str, only: Sequence[str] = ()) -> Iterator[api.TraceRecord]:
        """What the domain asks of its hypervisor from now on, of the kinds in ``only`` (all if it is empty).

        The last record is of kind ``end``. Who reads slowly gets records of kind ``lost``.
        """
        with self._transport.stream(_calls.trace(ref, only)) as (status, lines):
            if status >= 300:
                raise _calls.problem(status, b"".join(lines), ref=ref)
            for line in lines:
                record = _calls.trace_record(line)
                yield record
                if record.kind == "end":
                    return
        raise Unavailable("xend has ended the trace", hint=f"Again: xm debug-trace {ref}")

    def store_tree(self, path: str = "/") -> list[api.StoreNode]:
        """A node of xenstore and all below it, each before its children."""
        return self._call(_calls.store_tree(path)).nodes

    def store_node(self, path: str) -> api.StoreNode:
        """One node; its value is escaped. Raises NotFound."""
        return self._call(_calls.store_node(path))

    def store_read(self, path: str) -> bytes:
        """A node's value. Raises NotFound."""
        return unescape(self.store_node(path).value)

    def store_write(self, values: Mapping[str, bytes]) -> None:
        """Set values by path; all or none of those in one domain's part."""
        self._call(_calls.store_write(values))

    def store_remove(self, path: str, *, tidy: bool = False) -> None:
        """Remove a node with all below it, and with ``tidy`` those above it that are empty then."""
        self._call(_calls.store_remove(path, tidy=tidy))

    def store_permissions(
        self, path: str, permissions: Sequence[str], *, recurse: bool = False, upwards: bool = False
    ) -> None:
        """Say who may read and write a node: ``["n0", "r5"]``, the owner first."""
        self._call(_calls.store_permissions(path, permissions, recurse=recurse, upwards=upwards))

    def store_watch(self, paths: Sequence[str]) -> Iterator[api.StoreEvent]:
        """Each of ``paths`` once, then what changes at or below one of them, without end."""
        with self._transport.stream(_calls.store_watch(paths)) as (status, lines):
            if status >= 300:
                raise _calls.problem(status, b"".join(lines))
            for line in lines:
                yield _calls.store_event(line)
        raise Unavailable("xend has ended the watch")

    def _call(self, call: Call[T]) -> T:
        deadline = time.monotonic() + self._patience_s if call.safe else 0.0
        pause = 0.05
        while True:
            try:
                status, body = self._transport.request(call)
                return _calls.decode(call, status, body)
            except Unavailable:
                if time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 0.5)
