"""The classic columns, exactly as wide as xm printed them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from pyxen.agent_api import GuestInterface
from pyxen.api import Domain, Host, HostTopology, Image, VcpuList
from pyxen.config.cpulist import ranges
from pyxen.device_api import DeviceList, HostPciDevice, HostPciDevices, HostUsbDevice
from pyxen.scheduling_api import CpuPool
from pyxen.snapshot_api import Snapshot

Paint = Callable[[str], str]


def _plain(text: str) -> str:
    return text


def _domid(domain: Domain) -> str:
    return "" if domain.domid is None else str(domain.domid)


def domains(listed: Iterable[Domain], paint: Paint = _plain) -> Iterator[str]:
    """xm list."""
    yield f"{'Name':<40} {'ID':>5} {'Mem':>5} {'VCPUs':>5} {'State':>10} {'Time(s)':>9}"
    for each in listed:
        state = paint(f"{each.state:>10}")
        yield (
            f"{each.name:<40} {_domid(each):>5} {each.memory_mib:>5} {each.vcpus:>5} {state} {each.cpu_time_s:>8.1f}"
        )


def disks(found: DeviceList) -> Iterator[str]:
    """xm block-list; as xm does, nothing for no disks."""
    if found.disks:
        yield "Vdev  BE handle state evt-ch ring-ref BE-path"
    for each in found.disks:
        path = _backend(found, "vbd", each.number)
        yield f"{each.number:<5d}  {0:<3d}  {0:<3d}   {_state(each.state):<3d}    {-1:<3d}    {-1:<5d} {path:<30}  "


def vifs(found: DeviceList, interfaces: Iterable[GuestInterface] = ()) -> Iterator[str]:
    """xm network-list; as xm does, nothing for no interfaces. A last column where addresses are known."""
    known = {each.mac: " ".join(each.addresses) for each in interfaces if each.mac and each.addresses}
    if found.vifs:
        more = f"{'':<25} IP Addr." if known else ""
        yield f"Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path{more}"
    for each in found.vifs:
        path, mac = _backend(found, "vif", each.number), each.vif.mac or ""
        state = _state(each.state)
        yield (
            f"{each.number:<3d} {0:<3d}{mac:<17}    {each.number:<3d}   {state:<3d}    {-1:<3d}   "
            f"{-1:<5d}/{-1:<5d}   {path:<30}  {known.get(mac, '')}"
        )


def pci(found: DeviceList) -> Iterator[str]:
    """xm pci-list; nothing for no devices."""
    if found.pci:
        yield "Vdev Device"
    for each in found.pci:
        slot = "-" if each.slot is None else f"{each.slot:02x}.0"
        yield f"{slot:<4} {each.device.address}"


def usb(found: DeviceList) -> Iterator[str]:
    """xm usb-list; nothing for no devices."""
    from pyxen.config.render import render_usb

    if found.usb:
        yield f"{'Idx':<3} {'State':<9} Device"
    for each in found.usb:
        yield f"{each.number:<3} {each.state or '-':<9} {render_usb(replace(each.device, devid=None))}"


def host_pci(found: HostPciDevices) -> Iterator[str]:
    """xm pci-list-assignable-devices --all."""
    yield f"{'Device':<12} {'Group':>5} {'State':<10} {'Driver':<14} {'Domain':<16} Name"
    for each in found.devices:
        group = "-" if each.group is None else str(each.group)
        name = " ".join(part for part in (each.vendor_name, each.device_name) if part)
        name = name or f"{each.kind} {each.vendor}:{each.device}"
        yield (
            f"{each.address:<12} {group:>5} {_pci_state(each):<10} {each.driver or '-':<14} {each.domain or '-':<16} "
            f"{name}"
        )


def _pci_state(each: HostPciDevice) -> str:
    """``free``: it can be made assignable; ``kept``: it can't."""
    if each.domain is not None:
        return "assigned"
    return "assignable" if each.assignable else "kept" if each.problem else "free"


def host_usb(listed: Iterable[HostUsbDevice]) -> Iterator[str]:
    """xm usb-list-assignable-devices."""
    yield f"{'Bus':>3} {'Addr':>4} {'ID':<9} Name"
    for each in listed:
        yield f"{each.hostbus:>3} {each.hostaddr:>4} {each.vendor}:{each.product} {each.name}".rstrip()


def _backend(found: DeviceList, kind: str, number: int) -> str:
    return "??" if found.domid is None else f"/local/domain/0/backend/{kind}/{found.domid}/{number}"


def _state(state: str) -> int:
    """xenbus' number for it."""
    return {"waiting": 3, "attached": 4, "detaching": 5}.get(state, -1)


def vcpus(lists: Iterable[VcpuList], host_cpus: int) -> Iterator[str]:
    """xm vcpu-list."""
    yield f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} CPU Affinity"
    for each in lists:
        domid = "" if each.domid is None else str(each.domid)
        for vcpu in each.vcpus:
            if each.domid is None:
                cpu, state = "", ""
            else:
                cpu = "-" if vcpu.cpu is None else str(vcpu.cpu)
                state = vcpu.state
            yield (
                f"{each.name:<32} {domid:>5} {vcpu.number:>5} {cpu:>5} {state:>5}  {vcpu.time_s:>8.1f} "
                f"{affinity(vcpu.affinity, host_cpus)}{_soft(vcpu.soft_affinity, host_cpus)}"
            )


def affinity(cpus: list[int] | None, host_cpus: int) -> str:
    """``any cpu``, ``no cpus``, or ranges such as ``0-1,3``."""
    if cpus is None or set(range(host_cpus)) <= set(cpus):
        return "any cpu"
    return ranges(cpus) or "no cpus"


def _soft(cpus: list[int] | None, host_cpus: int) -> str:
    """What xl puts after the hard affinity, where there is one."""
    return "" if cpus is None else f" / {affinity(cpus, host_cpus)}"


def credits(listed: Iterable[Domain]) -> Iterator[str]:
    """xm sched-credit. Domain-0 has what is usual: nothing holds it to that."""
    yield f"{'Name':<33} {'ID':>4} {'Weight':>6} {'Cap':>4}"
    for each in listed:
        weight, cap = (each.config.cpu_weight, each.config.cpu_cap) if each.config else (256, 0)
        yield f"{each.name:<32} {_domid(each):>5} {weight:>6} {cap:>4}"


def cpupools(listed: Iterable[CpuPool]) -> Iterator[str]:
    """xm cpupool-list."""
    yield "Name               CPUs   Sched     Active   Domain count"
    for each in listed:
        yield f"{each.name:<16}   {len(each.cpus):>3}  {each.sched:>8}       y          {len(each.domains)}"


def cpupool_cpus(listed: Iterable[CpuPool]) -> Iterator[str]:
    """xm cpupool-list -c."""
    yield f"{'Name':<16} CPU list"
    for each in listed:
        yield f"{each.name:<16} {','.join(map(str, each.cpus)) or '-'}"


def topology(found: HostTopology) -> Iterator[str]:
    """What xm info -n adds."""
    yield f"{'cpu_topology':<23}:"
    yield "cpu:    core    socket     node"
    for cpu in found.cpus:
        yield f"{cpu.number:>3}:    {cpu.core:>4}      {cpu.socket:>4}     {cpu.node:>4}"
    yield f"{'numa_info':<23}:"
    yield "node:    memsize    memfree    distances"
    for node in found.nodes:
        distances = ",".join(map(str, node.distances)) or "10"
        yield f"{node.number:>4}:    {node.memory_mib:>7}    {node.free_mib:>7}      {distances}"


def info(host: Host) -> Iterator[str]:
    """xm info: the classic keys, then pyxen's."""
    facts: dict[str, object] = {
        "host": host.host,
        "release": host.release,
        "version": host.version,
        "machine": host.machine,
        "nr_cpus": host.nr_cpus,
        "nr_nodes": host.nr_nodes,
        "cores_per_socket": host.cores_per_socket,
        "threads_per_core": host.threads_per_core,
        "cpu_mhz": f"{host.cpu_mhz:.0f}",
        "cpu_model": host.cpu_model,
        "virt_caps": host.virt_caps,
        "total_memory": host.total_memory_mib,
        "free_memory": host.free_memory_mib,
        "sharing_freed_memory": host.sharing_freed_mib,
        "sharing_used_memory": host.sharing_used_mib,
        "sharing": "on" if host.sharing else "off",
        "domains_running": host.domains_running,
        "clones_waiting": host.clones_waiting,
        "accelerator": host.accelerator,
        "kvm": host.kvm_verdict,
    }
    for engine in host.engines:
        facts[f"engine_{engine.name}"] = f"{engine.version} ({engine.reason})" if engine.version else engine.reason
    facts |= {"pyxen_version": host.pyxen_version, "state_root": host.state_root, "run_root": host.run_root}
    for key, value in facts.items():
        yield f"{key:<23}: {'(none)' if value == '' else value}"


def uptime(listed: Iterable[tuple[Domain, float]]) -> Iterator[str]:
    """xm uptime, of domains and the seconds that they have been up."""
    yield f"{'Name':<33} {'ID':>4} Uptime "
    for each, seconds in listed:
        days, hours, minutes, rest = _split(seconds)
        yield f"{each.name:<32} {_domid(each):>5} {_days(days)}{hours:>2}:{minutes:02}:{rest:02}"


def uptime_short(listed: Iterable[tuple[Domain, float]], now: float) -> Iterator[str]:
    """xm uptime -s; ``now`` in seconds since 1970."""
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    for each, seconds in listed:
        days, hours, minutes, _ = _split(seconds)
        yield f" {clock} up {_days(days)}{hours}:{minutes:02}, {each.name} ({_domid(each)})"


def _split(seconds: float) -> tuple[int, int, int, int]:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return days, hours, minutes, rest


def _days(days: int) -> str:
    return f"{days} day{'' if days == 1 else 's'}, " if days else ""


def images(listed: Iterable[Image]) -> Iterator[str]:
    """xm image list."""
    yield f"{'Name':<20} {'Kind':<8} {'Size(MiB)':>9} {'Created':<16} Kernel"
    for each in listed:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.created_at))
        yield f"{each.name:<20} {each.kind:<8} {each.size_bytes / 2**20:>9.1f} {created:<16} {each.kernel_release}"


def snapshots(listed: Iterable[Snapshot]) -> Iterator[str]:
    """xm snapshot list."""
    yield f"{'Domain':<20} {'Snapshot':<20} {'Created':<16} {'Size(MiB)':>9} Disks"
    for each in listed:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.created_at))
        disks = ",".join(each.disks) or "-"
        yield f"{each.domain:<20} {each.name:<20} {created:<16} {each.disk_bytes / 2**20:>9.1f} {disks}"
