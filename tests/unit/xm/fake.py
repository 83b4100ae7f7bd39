"""A client without a xend: domains in memory, and a record of what was ordered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pyxen import agent_api, api, device_api, scheduling_api, snapshot_api
from pyxen.api import Domain, PowerState, Vcpu, VcpuList
from pyxen.client import Address, Client, DomainNotFound
from pyxen.config.model import Disk, DomainConfig, PciDevice, UsbDevice, Vif
from pyxen.errors import NotFound


def domain(name: str, domid: int | None, **more: Any) -> Domain:
    values: dict[str, Any] = {
        "domid": domid,
        "name": name,
        "uuid": f"00000000-0000-4000-8000-{len(name):012}",
        "power_state": PowerState.HALTED if domid is None else PowerState.RUNNING,
        "state": "" if domid is None else "-b----",
        "managed": domid is None,
        "memory_mib": 256,
        "maxmem_mib": 256,
        "vcpus": 1,
        "maxvcpus": 2,
        "cpu_time_s": 1.64,
        "created_at": 1000.0,
        "started_at": 1000.0,
    }
    return Domain(**(values | more))


DOM0 = domain("Domain-0", 0, state="r-----", memory_mib=1500, vcpus=4, cpu_time_s=123.45)
WEB = domain("web", 3)
HALTED = domain("managed", None, memory_mib=64, cpu_time_s=0.0, started_at=None)

HOST = api.Host(
    host="box",
    release="6.1.0",
    version="#1 SMP",
    machine="x86_64",
    nr_cpus=2,
    nr_nodes=1,
    cores_per_socket=2,
    threads_per_core=1,
    cpu_mhz=2500.4,
    cpu_model="A CPU",
    virt_caps="",
    total_memory_mib=8000,
    free_memory_mib=6000,
    sharing_freed_mib=12,
    sharing_used_mib=3,
    sharing=True,
    uptime_s=93784.0,
    pyxen_version="0.1.0",
    domains_running=1,
    clones_waiting=2,
    accelerator="tcg",
    kvm_verdict="no /dev/kvm",
    engines=[api.EngineInfo("qemu", True, "it is there", "7.2"), api.EngineInfo("xen", False, "not yet")],
    state_root="/s",
    run_root="/r",
)


class FakeClient(Client):
    """``answers``: what looking up a domain by UUID gives, one after the other, while somebody waits."""

    def __init__(self, *domains: Domain) -> None:
        self.addresses: dict[int, list[str]] = {}
        """What agents say, by a vif's number."""
        super().__init__(Address(socket=Path("/nowhere/xend.sock")))
        self.there = list(domains)
        self.orders: list[tuple[Any, ...]] = []
        self.pci: list[device_api.HostPciDevice] = []
        self.pci_problem = ""
        self.answers: list[Domain | None] = []
        self.steps: list[api.Progress] = []
        self.failure: Exception | None = None
        self.nodes: dict[str, api.StoreNode] = {}
        self.traced: list[api.TraceRecord | type[BaseException]] = []

    def patient(self, seconds: float) -> Client:
        return self

    def domains(self) -> list[Domain]:
        if self.failure is not None:
            raise self.failure
        return self.there

    def domain(self, ref: str) -> Domain:
        if self.answers:
            answer = self.answers.pop(0)
            if answer is None:
                raise DomainNotFound(ref)
            return answer
        for each in self.there:
            if ref in (each.name, str(each.domid), each.uuid):
                return each
        raise DomainNotFound(ref, hint="See what there is: xm list")

    def _order(self, *words: Any) -> Domain:
        self.orders.append(words)
        return self.domain(words[1])

    def create(self, config: DomainConfig, *, paused: bool = False, managed: bool = False) -> Domain:
        self.orders.append(("create", config.name, paused, managed))
        return domain(config.name, None if managed else 7, config=config, warnings=["it is slow"])

    def start(self, ref: str, *, paused: bool = False) -> Domain:
        return self._order("start", ref, paused)

    def shutdown(self, ref: str, reason: str = "poweroff") -> Domain:
        return self._order("shutdown", ref, reason)

    def destroy(self, ref: str) -> Domain:
        return self._order("destroy", ref)

    def pause(self, ref: str) -> Domain:
        return self._order("pause", ref)

    def unpause(self, ref: str) -> Domain:
        return self._order("unpause", ref)

    def suspend(self, ref: str) -> Domain:
        return self._order("suspend", ref)

    def resume(self, ref: str) -> Domain:
        return self._order("resume", ref)

    def rename(self, ref: str, name: str) -> Domain:
        return self._order("rename", ref, name)

    def set_vcpus(self, ref: str, count: int) -> Domain:
        return self._order("set_vcpus", ref, count)

    def set_memory(self, ref: str, memory_mib: int) -> Domain:
        return self._order("set_memory", ref, memory_mib)

    def set_maxmem(self, ref: str, maxmem_mib: int) -> Domain:
        return self._order("set_maxmem", ref, maxmem_mib)

    def guest_interfaces(self, ref: str) -> agent_api.GuestInterfaces:
        found = self.devices(ref)
        addresses = {each.vif.mac: self.addresses.get(each.number, []) for each in found.vifs}
        interfaces = [agent_api.GuestInterface(f"eth{n}", mac, addresses[mac]) for n, mac in enumerate(addresses)]
        kind = api.AgentKind.QEMU if self.addresses else None
        return agent_api.GuestInterfaces(found.domid, found.name, kind, interfaces if kind else [])

    def devices(self, ref: str) -> device_api.DeviceList:
        found = self.domain(ref)
        config = found.config or DomainConfig(name=found.name)
        state = "" if found.domid is None else "attached"
        disks = [device_api.DiskDevice(51712 + 16 * n, state, disk) for n, disk in enumerate(config.disk)]
        vifs = [device_api.VifDevice(number, state, vif) for number, vif in enumerate(config.vif)]
        pci = [device_api.PciAttached(5 if state else None, state, each) for each in config.pci]
        usb = [device_api.UsbAttached(number, state, each) for number, each in enumerate(config.usbdev)]
        return device_api.DeviceList(found.domid, found.name, disks, vifs, pci, usb)

    def host_pci(self) -> device_api.HostPciDevices:
        return device_api.HostPciDevices(self.pci, self.pci_problem, "Get one." if self.pci_problem else "")

    def host_usb(self) -> device_api.HostUsbDevices:
        mouse = device_api.HostUsbDevice(1, 3, "1-2", "046d", "c077", "Logitech Mouse", None, "")
        taken = device_api.HostUsbDevice(1, 4, "1-3", "0951", "1666", "Stick", "web", "")
        return device_api.HostUsbDevices([mouse, taken])

    def make_pci_assignable(self, address: str) -> None:
        self.orders.append(("make_pci_assignable", address))

    def give_pci_back(self, address: str) -> None:
        self.orders.append(("give_pci_back", address))

    def attach_pci(self, ref: str, pci: PciDevice) -> Domain:
        return self._order("attach_pci", ref, pci)

    def detach_pci(self, ref: str, address: str) -> Domain:
        return self._order("detach_pci", ref, address)

    def attach_usb(self, ref: str, usb: UsbDevice) -> Domain:
        return self._order("attach_usb", ref, usb)

    def detach_usb(self, ref: str, which: str) -> Domain:
        return self._order("detach_usb", ref, which)

    def attach_disk(self, ref: str, disk: Disk) -> Domain:
        return self._order("attach_disk", ref, disk)

    def detach_disk(self, ref: str, vdev: str, *, force: bool = False) -> Domain:
        return self._order("detach_disk", ref, vdev, force)

    def change_disc(self, ref: str, vdev: str, target: str | None = None) -> Domain:
        return self._order("change_disc", ref, vdev, target)

    def limit_disk(self, ref: str, vdev: str, rate: int | None = None, iops: int | None = None) -> Domain:
        return self._order("limit_disk", ref, vdev, rate, iops)

    def limit_vif(self, ref: str, vif: str, rate: int) -> Domain:
        return self._order("limit_vif", ref, vif, rate)

    def resize_disk(self, ref: str, vdev: str, size_bytes: int) -> Domain:
        return self._order("resize_disk", ref, vdev, size_bytes)

    def attach_vif(self, ref: str, vif: Vif) -> Domain:
        return self._order("attach_vif", ref, vif)

    def detach_vif(self, ref: str, vif: str, *, force: bool = False) -> Domain:
        return self._order("detach_vif", ref, vif, force)

    def pin_vcpus(
        self, ref: str, vcpu: int | None = None, *, cpus: str | None = None, soft: str | None = None
    ) -> Domain:
        changed = self._order("pin_vcpus", ref, vcpu, cpus, soft)
        return msgspec.structs.replace(changed, warnings=["one thread"] if cpus == "1" else [])

    def set_credit(self, ref: str, *, weight: int | None = None, cap: int | None = None) -> Domain:
        return self._order("set_credit", ref, weight, cap)

    def set_io_weight(self, ref: str, weight: int) -> Domain:
        return self._order("set_io_weight", ref, weight)

    def set_pool(self, ref: str, pool: str) -> Domain:
        return self._order("set_pool", ref, pool)

    def cpupools(self) -> scheduling_api.CpuPoolList:
        return scheduling_api.CpuPoolList(
            [scheduling_api.CpuPool("Pool-0", [0, 2], ["web"]), scheduling_api.CpuPool("fast", [], [])], [3]
        )

    def create_cpupool(self, name: str, cpus: str | None = None) -> scheduling_api.CpuPool:
        self.orders.append(("create_cpupool", name, cpus))
        return scheduling_api.CpuPool(name, [], [])

    def destroy_cpupool(self, name: str) -> None:
        self.orders.append(("destroy_cpupool", name))

    def add_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        self.orders.append(("add_cpus", pool, cpus))
        return scheduling_api.CpuPool(pool, [], [])

    def remove_cpus(self, pool: str, cpus: str) -> scheduling_api.CpuPool:
        self.orders.append(("remove_cpus", pool, cpus))
        return scheduling_api.CpuPool(pool, [], [])

    def split_cpupools(self) -> scheduling_api.CpuPoolList:
        self.orders.append(("split_cpupools",))
        return self.cpupools()

    def topology(self) -> api.HostTopology:
        return api.HostTopology(
            [api.HostCpu(0, 0, 0, 0), api.HostCpu(1, 2, 1, 1)], [api.HostNode(1, 2048, 512, [21, 10])]
        )

    def sysrq(self, ref: str, key: str) -> Domain:
        return self._order("sysrq", ref, key)

    def trigger(self, ref: str, trigger: api.Trigger, vcpu: int | None = None) -> Domain:
        return self._order("trigger", ref, trigger, vcpu)

    def screen(self, ref: str) -> bytes:
        self.domain(ref)
        return b"\x89PNG\r\n\x1a\n"

    def dump_core(
        self, ref: str, path: str | None = None, *, live: bool = False, crash: bool = False, reset: bool = False
    ) -> api.CoreDump:
        self._order("dump_core", ref, path, live, crash, reset)
        return api.CoreDump(ref, path or "/state/dump/web-3-1.core", 4096)

    def save(self, ref: str, path: str, *, checkpoint: bool = False) -> api.SavedState:
        self._order("save", ref, path, checkpoint)
        return api.SavedState(ref, path, 4096)

    def restore(self, path: str, *, paused: bool = False) -> Domain:
        return self._order("restore", "web", path, paused)

    def migrate(self, ref: str, host: str, **options: Any) -> Iterator[api.Progress]:
        self._order("migrate", ref, host, options)
        yield from self.steps

    def cancel_migration(self, ref: str) -> Domain:
        return self._order("cancel", ref)

    def keep(self, ref: str) -> Domain:
        return self._order("keep", ref)

    def peers(self) -> api.PeerList:
        return api.PeerList("-----BEGIN CERTIFICATE-----\n", "aa:bb", [api.Peer("b", "cc:dd")])

    def add_peer(self, name: str, certificate: str) -> api.Peer:
        self.orders.append(("add-peer", name, certificate))
        return api.Peer(name, "ee:ff")

    def remove_peer(self, name: str) -> None:
        self.orders.append(("remove-peer", name))

    def snapshots(self, ref: str | None = None) -> list[snapshot_api.Snapshot]:
        self.orders.append(("snapshots", ref))
        return [snapshot_api.Snapshot("base", "web", "u", 0.0, ["xvda", "xvdb"], 3 * 2**20)]

    def create_snapshot(self, ref: str, name: str, *, quiesce: bool = False) -> snapshot_api.Snapshot:
        self._order("create_snapshot", ref, name, *(["quiesce"] if quiesce else []))
        return self.snapshots()[0]

    def revert(self, ref: str, snapshot: str, *, paused: bool = False) -> Domain:
        return self._order("revert", ref, snapshot, paused)

    def remove_snapshot(self, ref: str, snapshot: str) -> None:
        self._order("remove_snapshot", ref, snapshot)

    def clone(
        self, ref: str, name: str, snapshot: str | None = None, *, paused: bool = False, managed: bool = False
    ) -> Domain:
        return self._order("clone", ref, name, snapshot, paused, managed)

    def delete(self, ref: str) -> None:
        self._order("delete", ref)

    def host(self) -> api.Host:
        return HOST

    def version(self) -> api.Version:
        return api.Version("0.2.0")

    def vcpus(self, ref: str) -> VcpuList:
        found = self.domain(ref)
        if found.domid is None:
            return VcpuList(None, found.name, [Vcpu(0, False, "", None, 0.0)])
        vcpus = [Vcpu(0, True, "-b-", 1, 3.25, [0, 1]), Vcpu(1, False, "--p", None, 0.0, [1])]
        return VcpuList(found.domid, found.name, vcpus)

    def log(self, tail: int | None = None) -> str:
        return f"log tail={tail}\n"

    def follow_log(self, tail: int | None = None) -> Iterator[str]:
        yield f"followed tail={tail}"
        raise KeyboardInterrupt

    def dmesg(self) -> str:
        return "probe: no\n"

    def debug_keys(self, keys: str) -> None:
        self.orders.append(("debug_keys", keys))

    def images(self) -> api.ImageList:
        image = api.Image("tiny", "tiny", 25 * 2**20, 0.0, "6.1.0-56-cloud-amd64", "/k")
        return api.ImageList([image], ["debian", "tiny"])

    def build_image(
        self, name: str, *, force: bool = False, options: dict[str, str] | None = None
    ) -> Iterator[api.Progress]:
        self.orders.append(("build", name, force, options))
        yield from self.steps

    def remove_image(self, name: str) -> None:
        self.orders.append(("remove", name))

    def events(self, after: int | None = None) -> Iterator[api.Event]:
        yield api.Event(8, 0.0, "domain-stopped", 3, "web", "u", "poweroff", {"restarts": 1})

    def trace(self, ref: str, only: Sequence[str] = ()) -> Iterator[api.TraceRecord]:
        self.orders.append(("trace", ref, only))
        self.domain(ref)
        for record in self.traced:
            if isinstance(record, api.TraceRecord):
                yield record
            else:
                raise record

    def store_tree(self, path: str = "/") -> list[api.StoreNode]:
        found = [node for each, node in sorted(self.nodes.items()) if f"{each}/".startswith(f"{path.rstrip('/')}/")]
        if not found:
            raise NotFound(f"xenstore has no {path}")
        return found

    def store_node(self, path: str) -> api.StoreNode:
        return self.store_tree(path)[0]

    def store_write(self, values: Mapping[str, bytes]) -> None:
        self.orders.append(("write", dict(values)))

    def store_remove(self, path: str, *, tidy: bool = False) -> None:
        self.orders.append(("remove", path, tidy))

    def store_permissions(
        self, path: str, permissions: Sequence[str], *, recurse: bool = False, upwards: bool = False
    ) -> None:
        self.orders.append(("permissions", path, permissions, recurse, upwards))

    def store_watch(self, paths: Sequence[str]) -> Iterator[api.StoreEvent]:
        for path in paths:
            yield api.StoreEvent(path, path)
        yield api.StoreEvent(f"{paths[0]}/x", paths[0])

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}


def ended(one: Domain) -> Domain:
    return msgspec.structs.replace(one, domid=None, power_state=PowerState.HALTED, state="")
