"""The asynchronous client, for services: the same calls as :class:`pyxen.client.Client`, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pyxen import agent_api, api, device_api, run_api, scheduling_api, snapshot_api
from pyxen.abi.xs_text import unescape
from pyxen.client import _calls
from pyxen.client._calls import Call
from pyxen.client.transport import DEFAULT_TIMEOUT_S, Address, find_address, lost, unreachable
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.errors import PyxenError, Unavailable

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
_HEARTBEAT_S = 45.0


class AsyncClient:
    """Typed calls on one xend; see Client for what ``ref``, ``patience_s`` and the errors mean.

    Calls may run at the same time. Use it as ``async with AsyncClient() as client``.
    """

    def __init__(
        self, address: Address | None = None, *, timeout: float | None = DEFAULT_TIMEOUT_S, patience_s: float = 0
    ) -> None:
        import httpx2

        self.address = address or find_address()
        self._patience_s = patience_s
        socket = self.address.socket
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=None if socket is None else str(socket)),
            base_url=f"http://{self.address.netloc}",
            headers=self.address.headers,
            timeout=timeout,
            trust_env=False,
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def host(self) -> api.Host:
        return await self._call(_calls.host())

    async def topology(self) -> api.HostTopology:
        """The host's CPUs and NUMA nodes."""
        return await self._call(_calls.topology())

    async def version(self) -> api.Version:
        return await self._call(_calls.version())

    async def domains(self) -> list[api.Domain]:
        """Domain-0 first, then by name; managed ones that are not running included."""
        return (await self._call(_calls.domains())).domains

    async def domain(self, ref: str) -> api.Domain:
        return await self._call(_calls.domain(ref))

    async def create(self, config: DomainConfig, *, paused: bool = False, managed: bool = False) -> api.Domain:
        """Start a domain that is forgotten when it ends, or with ``managed`` define one that is kept."""
        return await self._call(_calls.create(config, paused=paused, managed=managed))

    async def start(self, ref: str, *, paused: bool = False) -> api.Domain:
        """Start a managed domain."""
        return await self._call(_calls.start(ref, paused=paused))

    async def shutdown(self, ref: str, reason: str = "poweroff") -> api.Domain:
        """Ask the guest to ``poweroff``, ``reboot`` or ``halt``; does not wait for it."""
        return await self._call(_calls.shutdown(ref, reason))

    async def destroy(self, ref: str) -> api.Domain:
        """End a domain at once."""
        return await self._call(_calls.destroy(ref))

    async def pause(self, ref: str) -> api.Domain:
        return await self._call(_calls.pause(ref))

    async def unpause(self, ref: str) -> api.Domain:
        return await self._call(_calls.unpause(ref))

    async def set_vcpus(self, ref: str, count: int) -> api.Domain:
        """Ask the guest to use VCPUs 0 to ``count`` - 1; does not wait for it."""
        return await self._call(_calls.set_vcpus(ref, count))

    async def set_memory(self, ref: str, memory_mib: int) -> api.Domain:
        """Ask the guest to shrink or grow to ``memory_mib``; does not wait for it."""
        return await self._call(_calls.set_memory(ref, memory_mib))

    async def set_maxmem(self, ref: str, maxmem_mib: int) -> api.Domain:
        """Set the most memory that the domain may be given."""
        return await self._call(_calls.set_maxmem(ref, maxmem_mib))

    async def devices(self, ref: str) -> device_api.DeviceList:
        """A domain's devices that come and go: disks, network interfaces, PCI and USB devices."""
        return await self._call(_calls.devices(ref))

    async def guest_interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        """A guest's network interfaces and addresses, as its agent has them; none where no agent says."""
        return await self._call(_calls.guest_interfaces(ref))

    async def attach_disk(self, ref: str, disk: Disk) -> api.Domain:
        """Give a domain a disk: a running one at once, a managed one that doesn't run at its next start."""
        return await self._call(_calls.attach_disk(ref, disk))

    async def detach_disk(self, ref: str, vdev: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a disk (``xvdb``, or its number); returns when it has.

        With ``force`` it is taken away whatever the guest does with it; only the Xen engine can.
        """
        return await self._call(_calls.detach_disk(ref, vdev, force))

    async def change_disc(self, ref: str, vdev: str, target: str | None = None) -> api.Domain:
        """Put a disc, an image on xend's machine, into a CD-ROM drive; None: take out the one that is there."""
        return await self._call(_calls.change_disc(ref, vdev, target))

    async def resize_disk(self, ref: str, vdev: str, size_bytes: int) -> api.Domain:
        """Make a running domain's disk longer."""
        return await self._call(_calls.resize_disk(ref, vdev, size_bytes))

    async def limit_disk(self, ref: str, vdev: str, rate: int | None = None, iops: int | None = None) -> api.Domain:
        """Let a disk do no more than so many bytes and requests a second. 0: no limit; None: as it is."""
        return await self._call(_calls.limit_disk(ref, vdev, rate, iops))

    async def limit_vif(self, ref: str, vif: str, rate: int) -> api.Domain:
        """Let a domain send no more than so many bytes a second over an interface. 0: no limit."""
        return await self._call(_calls.limit_vif(ref, vif, rate))

    async def attach_vif(self, ref: str, vif: Vif) -> api.Domain:
        """Give a domain a network interface."""
        return await self._call(_calls.attach_vif(ref, vif))

    async def detach_vif(self, ref: str, vif: str, *, force: bool = False) -> api.Domain:
        """Have the guest let go of a network interface, by its number or MAC; returns when it has.

        ``force`` is as in ``detach_disk``.
        """
        return await self._call(_calls.detach_vif(ref, vif, force))

    async def host_pci(self) -> device_api.HostPciDevices:
        """The host's PCI devices, and which of them domains may have."""
        return await self._call(_calls.host_pci())

    async def host_usb(self) -> device_api.HostUsbDevices:
        """The host's USB devices."""
        return await self._call(_calls.host_usb())

    async def make_pci_assignable(self, address: str) -> None:
        """Take a PCI device of the host from its driver, so that domains may have it."""
        await self._call(_calls.change_host_pci(address, "make-assignable"))

    async def give_pci_back(self, address: str) -> None:
        """Let the host's driver have a PCI device again."""
        await self._call(_calls.change_host_pci(address, "give-back"))

    async def attach_pci(self, ref: str, pci: PciDevice) -> api.Domain:
        """Give a domain an assignable PCI device of the host, at once or at its next start."""
        return await self._call(_calls.attach_pci(ref, pci))

    async def detach_pci(self, ref: str, address: str) -> api.Domain:
        """Have the guest let go of a PCI device, by its address on the host; returns when it has."""
        return await self._call(_calls.detach_pci(ref, address))

    async def attach_usb(self, ref: str, usb: UsbDevice) -> api.Domain:
        """Give a domain a USB device, at once or at its next start."""
        return await self._call(_calls.attach_usb(ref, usb))

    async def detach_usb(self, ref: str, which: str) -> api.Domain:
        """Unplug a USB device, by its number, or a host's by ``BUS.ADDRESS`` or ``VENDOR:PRODUCT``."""
        return await self._call(_calls.detach_usb(ref, which))

    async def pin_vcpus(
        self, ref: str, vcpu: int | None = None, *, cpus: str | None = None, soft: str | None = None
    ) -> api.Domain:
        """Say which of the host's CPUs a VCPU (None: each) may run on, and should: ``0-3,^1``, ``all``, ``nodes:0``.

        None leaves it as it is. What the host can't hold the domain to is in the answer's ``warnings``.
        """
        return await self._call(_calls.pin_vcpus(ref, vcpu, cpus, soft))

    async def set_credit(self, ref: str, *, weight: int | None = None, cap: int | None = None) -> api.Domain:
        """Set a domain's weight (1 to 65535) and cap (percent of one CPU, 0: none). None leaves it as it is."""
        return await self._call(_calls.set_credit(ref, weight, cap))

    async def set_io_weight(self, ref: str, weight: int) -> api.Domain:
        """Set a domain's part of the host's busy disks, 1 to 10000."""
        return await self._call(_calls.set_io_weight(ref, weight))

    async def snapshots(self, ref: str | None = None) -> list[snapshot_api.Snapshot]:
        """A domain's snapshots, or all, the oldest first."""
        return (await self._call(_calls.snapshots(ref))).snapshots

    async def create_snapshot(self, ref: str, name: str, *, quiesce: bool = False) -> snapshot_api.Snapshot:
        """Keep a running domain's memory and disks as they are now; it stands still meanwhile."""
        return await self._call(_calls.create_snapshot(ref, name, quiesce=quiesce))

    async def revert(self, ref: str, snapshot: str, *, paused: bool = False) -> api.Domain:
        """Take a domain back to a snapshot, whether it runs or not."""
        return await self._call(_calls.revert(ref, snapshot, paused=paused))

    async def remove_snapshot(self, ref: str, snapshot: str) -> None:
        await self._call(_calls.remove_snapshot(ref, snapshot))

    async def clone(
        self, ref: str, name: str, snapshot: str | None = None, *, paused: bool = False, managed: bool = False
    ) -> api.Domain:
        """Start a new domain from a snapshot, or from what a running domain is now."""
        return await self._call(_calls.clone(ref, name, snapshot, paused=paused, managed=managed))

    async def set_pool(self, ref: str, pool: str) -> api.Domain:
        """Move a domain to another CPU pool."""
        return await self._call(_calls.set_pool(ref, pool))

    async def cpupools(self) -> scheduling_api.CpuPoolList:
        """The CPU pools, Pool-0 first, and CPUs that are in none."""
        return await self._call(_calls.cpupools())

    async def create_cpupool(self, name: str, cpus: str | None = None) -> scheduling_api.CpuPool:
        """Make a pool of CPUs that are free (None: of one of them)."""
        return await self._call(_calls.create_cpupool(name, cpus))

    async def destroy_cpupool(self, name: str) -> None:
        """End a pool without domains; its CPUs are free then."""
        await self._call(_calls.destroy_cpupool(name))

    async def add_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        """Put free CPUs into a pool."""
        return await self._call(_calls.change_cpupool(pool, "add-cpus", cpus))

    async def remove_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        """Take CPUs out of a pool; they are free then."""
        return await self._call(_calls.change_cpupool(pool, "remove-cpus", cpus))

    async def split_cpupools(self) -> scheduling_api.CpuPoolList:
        """Make a pool of each NUMA node."""
        return await self._call(_calls.split_cpupools())

    async def sysrq(self, ref: str, key: str) -> api.Domain:
        """Press SysRq and ``key`` in the guest."""
        return await self._call(_calls.sysrq(ref, key))

    async def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None = None) -> api.Domain:
        """Send the guest an event of hardware."""
        return await self._call(_calls.trigger(ref, trigger, vcpu))

    async def dump_core(
        self, ref: str, path: str | None = None, *, live: bool = False, crash: bool = False, reset: bool = False
    ) -> api.CoreDump:
        """Write an ELF core to ``path``, absolute and on xend's machine; returns when it is written.

        The guest is paused meanwhile unless ``live``. Then the domain goes on, or is destroyed (``crash``), or reset.
        """
        return await self._call(_calls.dump_core(ref, path, live=live, crash=crash, reset=reset))

    async def save(self, ref: str, path: str, *, checkpoint: bool = False) -> api.SavedState:
        """Write the domain's state to ``path``, absolute and on xend's machine; returns when it is written.

        The domain then ends, or goes on with ``checkpoint``.
        """
        return await self._call(_calls.save(ref, path, checkpoint=checkpoint))

    async def restore(self, path: str, *, paused: bool = False) -> api.Domain:
        """Start a domain from what ``save`` has written."""
        return await self._call(_calls.restore(path, paused=paused))

    async def migrate(self, ref: str, host: str, **options: Any) -> AsyncIterator[api.Progress]:
        """Move a running domain to another host; yields its steps, the last has ``done`` and ``migrated``.

        ``options`` are the fields of :class:`pyxen.api.MigrateRequest`. Leaving the iterator calls it off; a
        domain that can't be moved goes on here.
        """
        async with self._stream(_calls.migrate(ref, _calls.migrate_request(host, options)), None) as lines:
            async for line in lines:
                if step := _calls.progress(line):
                    yield step
                    if step.done:
                        return
        raise Unavailable(f"xend went away while it moved '{ref}'", hint="See where it is: xm list, here and there.")

    async def cancel_migration(self, ref: str) -> api.Domain:
        """Call a migration off; returns when the domain goes on here."""
        return await self._call(_calls.cancel_migration(ref))

    async def keep(self, ref: str) -> api.Domain:
        """Let a domain go on here that was given to a host which will never answer, and certainly doesn't run it."""
        return await self._call(_calls.keep(ref))

    async def peers(self) -> api.PeerList:
        """Other hosts that are trusted, and this one's certificate."""
        return await self._call(_calls.peers())

    async def add_peer(self, name: str, certificate: str) -> api.Peer:
        """Trust another host by its certificate, which is PEM."""
        return await self._call(_calls.add_peer(name, certificate))

    async def remove_peer(self, name: str) -> None:
        await self._call(_calls.remove_peer(name))

    async def rename(self, ref: str, name: str) -> api.Domain:
        return await self._call(_calls.rename(ref, name))

    async def suspend(self, ref: str) -> api.Domain:
        """Have the guest put its devices in order and stand still; returns when it does."""
        return await self._call(_calls.suspend(ref))

    async def resume(self, ref: str) -> api.Domain:
        """Let a suspended guest go on."""
        return await self._call(_calls.resume(ref))

    async def delete(self, ref: str) -> None:
        """Forget a managed domain that is not running."""
        await self._call(_calls.delete(ref))

    async def vcpus(self, ref: str) -> api.VcpuList:
        return await self._call(_calls.vcpus(ref))

    async def screen(self, ref: str) -> bytes:
        """What a domain's screen shows, as PNG."""
        return await self._call(_calls.screen(ref))

    async def log(self, tail: int | None = None) -> str:
        """xend's log, or its last ``tail`` lines."""
        return await self._call(_calls.log(tail))

    async def dmesg(self) -> str:
        return await self._call(_calls.dmesg())

    async def debug_keys(self, keys: str) -> None:
        """Press keys of Xen's: what the domains' hypervisors say of themselves comes into ``dmesg``."""
        await self._call(_calls.debug_keys(keys))

    async def images(self) -> api.ImageList:
        return await self._call(_calls.images())

    async def remove_image(self, name: str) -> None:
        await self._call(_calls.remove_image(name))

    async def schema(self) -> dict[str, Any]:
        """The JSON schema of a domain's description."""
        return await self._call(_calls.schema())

    async def build_image(
        self, name: str, *, force: bool = False, options: dict[str, str] | None = None
    ) -> AsyncIterator[api.Progress]:
        """Build an image; yields its steps, the last has ``done``. Closing the iterator ends the build."""
        async with self._stream(_calls.build_image(name, force=force, options=options or {}), None) as lines:
            async for line in lines:
                if step := _calls.progress(line):
                    yield step
                    if step.done:
                        return
        raise Unavailable(f"xend went away while it built image '{name}'")

    async def events(self, after: int | None = None) -> AsyncIterator[api.Event]:
        """What happens from now on, or after the event number ``after``, without end."""
        deadline = None
        while True:
            try:
                async with self._stream(_calls.events(after), _HEARTBEAT_S) as lines:
                    deadline = None
                    reader = _calls.EventLines()
                    async for line in lines:
                        if event := reader.feed(line):
                            after = event.sequence
                            yield event
                raise Unavailable("xend has ended the event stream")
            except Unavailable:
                deadline = deadline or time.monotonic() + self._patience_s
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(min(0.2, self._patience_s))

    async def exec(
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
        return await self._agent(ref, _calls.exec_request(argv, env, cwd, wait_s), stdin)

    async def run(self, request: run_api.RunRequest, stdin: bytes = b"") -> agent_api.ExecResult:
        """A command in a domain of its own, with this host's files, to its end."""
        from pyxen.client.agent_aio import carry_out

        return await carry_out(self.address, None, request, stdin)

    async def read_file(self, ref: str, path: str, *, wait_s: float = agent_api.AGENT_WAIT_S) -> bytes:
        """A file of a guest. Raises NotFound."""
        return (await self._agent(ref, agent_api.ReadFileRequest(path, wait_s), b"")).stdout

    async def write_file(
        self, ref: str, path: str, data: bytes, *, mode: int = 0o644, wait_s: float = agent_api.AGENT_WAIT_S
    ) -> None:
        """Make or replace a file in a guest; ``mode`` is for a new one."""
        await self._agent(ref, agent_api.WriteFileRequest(path, mode, wait_s), data)

    async def _agent(self, ref: str, request: agent_api.AgentRequest, data: bytes) -> agent_api.ExecResult:
        from pyxen.client.agent_aio import carry_out

        return await carry_out(self.address, ref, request, data)

    async def follow_log(self, tail: int | None = None) -> AsyncIterator[str]:
        """xend's log, or its last ``tail`` lines, and then each line as it is written, until xend ends."""
        async with self._stream(_calls.follow_log(tail), None) as lines:
            async for line in lines:
                yield line.decode(errors="replace").rstrip("\n")

    async def trace(self, ref: str, only: Sequence[str] = ()) -> AsyncIterator[api.TraceRecord]:
        """What the domain asks of its hypervisor from now on; see Client."""
        async with self._stream(_calls.trace(ref, only), None) as lines:
            async for line in lines:
                record = _calls.trace_record(line)
                yield record
                if record.kind == "end":
                    return
        raise Unavailable("xend has ended the trace", hint=f"Again: xm debug-trace {ref}")

    async def store_tree(self, path: str = "/") -> list[api.StoreNode]:
        """A node of xenstore and all below it, each before its children."""
        return (await self._call(_calls.store_tree(path))).nodes

    async def store_node(self, path: str) -> api.StoreNode:
        """One node; its value is escaped. Raises NotFound."""
        return await self._call(_calls.store_node(path))

    async def store_read(self, path: str) -> bytes:
        """A node's value. Raises NotFound."""
        return unescape((await self.store_node(path)).value)

    async def store_write(self, values: Mapping[str, bytes]) -> None:
        """Set values by path; all or none of those in one domain's part."""
        await self._call(_calls.store_write(values))

    async def store_remove(self, path: str, *, tidy: bool = False) -> None:
        """Remove a node with all below it, and with ``tidy`` those above it that are empty then."""
        await self._call(_calls.store_remove(path, tidy=tidy))

    async def store_permissions(
        self, path: str, permissions: Sequence[str], *, recurse: bool = False, upwards: bool = False
    ) -> None:
        """Say who may read and write a node: ``["n0", "r5"]``, the owner first."""
        await self._call(_calls.store_permissions(path, permissions, recurse=recurse, upwards=upwards))

    async def store_watch(self, paths: Sequence[str]) -> AsyncIterator[api.StoreEvent]:
        """Each of ``paths`` once, then what changes at or below one of them, without end."""
        async with self._stream(_calls.store_watch(paths), None) as lines:
            async for line in lines:
                yield _calls.store_event(line)
        raise Unavailable("xend has ended the watch")

    async def _call(self, call: Call[T]) -> T:
        deadline = time.monotonic() + self._patience_s if call.safe else 0.0
        pause = 0.05
        while True:
            try:
                return await self._once(call)
            except Unavailable:
                if time.monotonic() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _once(self, call: Call[T]) -> T:
        import httpx2

        timeout = httpx2.Timeout(10.0, read=None) if call.slow else httpx2.USE_CLIENT_DEFAULT
        try:
            response = await self._http.request(
                call.method, call.target, content=call.body, headers=call.headers, timeout=timeout
            )
        except httpx2.TransportError as error:
            raise self._explain(call, error) from error
        return _calls.decode(call, response.status_code, response.content)

    @asynccontextmanager
    async def _stream(self, call: Call[Any], silence: float | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body's lines as they come; ``silence`` is the longest wait for one, in seconds."""
        import httpx2

        try:
            async with self._http.stream(
                call.method,
                call.target,
                content=call.body,
                headers=call.headers,
                timeout=httpx2.Timeout(10.0, read=silence),
            ) as response:
                if response.status_code >= 300:
                    raise _calls.problem(response.status_code, await response.aread(), ref=call.ref)
                yield (line.encode() async for line in response.aiter_lines())
        except httpx2.TransportError as error:
            raise self._explain(call, error) from error

    def _explain(self, call: Call[Any], error: httpx2.TransportError) -> PyxenError:
        import httpx2

        if isinstance(error, httpx2.ConnectTimeout):
            return unreachable(self.address, TimeoutError())
        if isinstance(error, httpx2.ConnectError):
            return unreachable(self.address, _os_error(error))
        if isinstance(error, httpx2.TimeoutException):
            return lost(call, self.address, TimeoutError())
        return lost(call, self.address, error)


def _os_error(error: BaseException) -> OSError:
    """The system's own error below the library's."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError):
            return below
        below = below.__cause__ or below.__context__
    return OSError(str(error))
