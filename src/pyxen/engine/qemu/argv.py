"""QEMU's command line for a domain: pure, from a DomainSpec and what is known of the machine.

QEMU runs in the domain's folder and knows its files by their bare names: so the user that it runs as need not be able
to pass the folders above.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pyxen.abi import qga
from pyxen.abi.agent import PORT_NAME
from pyxen.api import AgentKind
from pyxen.config.model import DiskType, DomainConfig, DomainType, Firmware, Vif, vif_device, vif_numbers
from pyxen.engine.contract import DomainSpec
from pyxen.engine.layers import Drive
from pyxen.engine.process import marker
from pyxen.engine.qemu import passthrough
from pyxen.engine.qemu.disks import device_words, disk_arguments
from pyxen.engine.qemu.slots import (
    AGENTS,
    BALLOON,
    CONSOLE,
    DISPLAY,
    FUNCTIONS,
    PORT_GROUPS,
    PORTS,
    RANDOM,
    USB,
    VGA_MODELS,
    address,
    bus,
    has_virtio_console,
    laid_out,
    port_name,
    share_device,
)
from pyxen.engine.sockets import AGENT_PORTS

QBOOT = "/usr/share/qemu/qboot.rom"
_SERIAL_CONSOLE = "ttyS0"
_RAM = "pc.ram"  # MachineClass.default_ram_id, of pc and q35
VCPU_ID = "cpu"
"""What a VCPU's number follows in the id of its device."""
CONSOLE_ID = "console0"
EVENTS_INPUT = "events.in"
"""The FIFO by which the monitor that writes the events is spoken to."""


_ENLIGHTENMENTS = (
    *("hv-relaxed", "hv-vapic", "hv-spinlocks=0x1fff", "hv-vpindex", "hv-runtime", "hv-synic", "hv-stimer", "hv-time"),
    *("hv-frequencies", "hv-tlbflush", "hv-ipi", "hv-reset"),
)
"""What QEMU's docs/hyperv.txt recommends for Windows of today."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the launcher has found or opened before QEMU starts."""

    binary: str
    directory: Path
    accelerator: str
    """``kvm`` or ``tcg``."""
    host_cpus: int
    control_fd: int
    """A listening socket."""
    agent_fd: int
    """The same, for whoever has something to say to the guest's agent."""
    qga_fd: int
    """The same, for QEMU's guest agent."""
    kernel: str | None = None
    ramdisk: str | None = None
    drives: list[Drive] = field(default_factory=list)
    netdevs: list[str] = field(default_factory=list)
    """One for each vif, with ``id=vifN``."""
    firmware_code: str | None = None
    firmware_variables: str | None = None
    vnc: str | None = None
    """``ADDRESS:DISPLAY``."""
    incoming: bool = False
    """The guest's state will come later."""
    memory: str | None = None
    """The file that is the guest's memory."""
    shares: list[str] = field(default_factory=list)
    """A path for each of the description's folders."""
    usb: list[passthrough.Opened] = field(default_factory=list)
    """What each of the description's USB devices stands on."""
    tpm_fd: int | None = None
    """Leads to the domain's TPM."""
    gdb_fd: int | None = None
    """A listening socket for gdb."""
    memory_shared: bool = False
    """What the guest writes goes into that file."""


def build(spec: DomainSpec, facts: Facts) -> list[str]:
    """The whole command line but for the fd sets. The guest doesn't run yet: the events monitor is told ``cont``."""
    spec = laid_out(spec)
    config = spec.config
    arguments = [
        facts.binary,
        *("-name", f"guest={_escape(config.name)},debug-threads=on"),
        *("-uuid", spec.uuid),
        # One more place to look for firmware, where there is none: what tells this process from all others.
        *("-L", marker(facts.directory)),
        *("-nodefaults", "-no-user-config", "-S"),
        *(("-incoming", "defer") if facts.incoming else ()),
        # The state of a filled template doesn't say that its guest stood still: its clones go on by themselves.
        *(("-global", "migration.store-global-state=off") if facts.memory_shared else ()),
        *("-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *_monitors(facts.control_fd),
        *_machine(spec, facts),
        *_console(spec),
        *_boot(spec, facts),
        *_devices(spec, facts),
        *_shares(spec, facts),
    ]
    if facts.gdb_fd is not None:
        arguments += ["-chardev", f"socket,id=gdb,fd={facts.gdb_fd},server=on,wait=off", "-gdb", "chardev:gdb"]
    if config.type is DomainType.HVM:
        arguments += _hvm_devices(spec, facts)
    return arguments


def kernel_command_line(spec: DomainSpec, accelerator: str) -> str:
    """The guest's command line with what the machine adds: the console that the domain's log comes from, unless it
    names one, and under TCG no check of the timer.

    That check counts ticks against a delay loop. On a busy host a tick comes late, and Linux panics in about one
    boot of five hundred; on KVM, Xen and Hyper-V it leaves the check out by itself.
    """
    words = spec.cmdline.split()
    added = []
    if spec.config.serial != "none" and not any(word.startswith("console=") for word in words):
        added.append(f"console={_SERIAL_CONSOLE}")
    if accelerator == "tcg" and "no_timer_check" not in words:
        added.append("no_timer_check")
    return " ".join([*added, *([spec.cmdline] if spec.cmdline else [])])


def _escape(value: object) -> str:
    """For use in one of QEMU's comma-separated lists."""
    return str(value).replace(",", ",,")


def _monitors(control_fd: int) -> list[str]:
    # A "pipe" is two files, PATH.in and PATH.out, both opened for reading and writing: so nobody need be at the other
    # end of the FIFO, and what comes out may be a plain file.
    return [
        *("-chardev", "pipe,id=events,path=events"),
        *("-mon", "chardev=events,mode=control"),
        *("-chardev", f"socket,id=control,fd={control_fd},server=on,wait=off"),
        *("-mon", "chardev=control,mode=control"),
        # A stopped guest's process stays, for core dumps and on_…=preserve, until xend ends it.
        *("-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause"),
    ]


def _machine(spec: DomainSpec, facts: Facts) -> list[str]:
    config = spec.config
    if config.type is DomainType.PVH:
        machine = f"{spec.machine or 'pc'},usb=off,vmport=off,hpet=off,smm=off,graphics=off"
    else:
        kind = "q35" if config.hdtype == "ahci" else "pc"
        machine = f"{spec.machine or kind},vmport=off,usb={'on' if config.usbdevice else 'off'}"
        if not config.vnc:
            machine += ",graphics=off"  # SeaBIOS then writes to the serial port too
        if facts.firmware_code:
            machine += ",pflash0=code,pflash1=variables"
        if config.secure_boot:
            machine += ",smm=on"
    kvm = facts.accelerator == "kvm"
    accelerator = "kvm"
    if not kvm:
        # One thread for all VCPUs beats more threads than there are CPUs, most of all while they wait for each other.
        accelerator = f"tcg,thread={'single' if config.vcpus > facts.host_cpus else 'multi'}"
    return [
        *_memory(spec, facts),
        *("-machine", f"{machine},dump-guest-core=off,{_memory_words(config, facts)}"),
        *("-accel", accelerator),
        *("-cpu", _cpu(config, kvm=kvm)),
        # One core each, so that a VCPU's number is its core's; all but the first have names and can be unplugged.
        *("-smp", f"cpus=1,maxcpus={spec.most_vcpus},sockets=1,cores={spec.most_vcpus},threads=1"),
        *_vcpus(config.vcpus, facts.accelerator),
        *("-m", f"size={spec.most_memory_mib}M"),
        *("-rtc", f"base={'localtime' if config.localtime else 'utc'}"),
    ]


def _cpu(config: DomainConfig, *, kvm: bool) -> str:
    model = "host" if kvm else "max"
    # TCG shows no hypervisor to its guests, so there is nothing that Windows could be told of.
    return f"{model},{','.join(_ENLIGHTENMENTS)}" if config.viridian and kvm else model


def _memory_words(config: DomainConfig, facts: Facts) -> str:
    """How the machine's memory is made: equal pages are shared with others only if asked for; QEMU would by itself."""
    merge = f"mem-merge={'on' if config.memory_sharing else 'off'}"
    return f"{merge},memory-backend={_RAM}" if config.hugepages or facts.memory else merge


def _memory(spec: DomainSpec, facts: Facts) -> list[str]:
    """The machine's memory where it is huge pages, or a file.

    Under the name that memory has otherwise too: it is in the stream of a guest's state.
    """
    words = f"size={spec.most_memory_mib}M"
    if facts.memory is not None:
        kind = f"memory-backend-file,mem-path={facts.memory},share={'on' if facts.memory_shared else 'off'}"
    elif spec.config.hugepages is not None:
        kind, words = "memory-backend-memfd", f"{words},hugetlb=on,hugetlbsize={spec.config.hugepages.upper()}"
    else:
        return []
    kind, _, more = kind.partition(",")
    more = f",{more}" if more else ""
    return ["-object", f"{kind},id={_RAM},x-use-canonical-path-for-ramblock-id=off,{words}{more}"]


def _vcpus(count: int, accelerator: str) -> list[str]:
    devices = (vcpu_device(number, accelerator) for number in range(1, count))
    return [word for device in devices for word in ("-device", device_words(device))]


def vcpu_device(number: int, accelerator: str) -> dict[str, object]:
    """A VCPU as QMP's device_add takes it."""
    driver = "host-x86_64-cpu" if accelerator == "kvm" else "max-x86_64-cpu"
    return {"driver": driver, "id": f"{VCPU_ID}{number}", "socket-id": 0, "core-id": number, "thread-id": 0}


def _console(spec: DomainSpec) -> list[str]:
    if spec.config.serial == "none" and spec.config.type is DomainType.HVM:
        return []
    chardev = f"pipe,id={CONSOLE_ID},path=console"
    if has_virtio_console(spec):
        device = ["-device", _pci(spec, CONSOLE, "virtio-serial-pci"), "-device", f"virtconsole,chardev={CONSOLE_ID}"]
    else:
        device = ["-serial", f"chardev:{CONSOLE_ID}"]
    return ["-chardev", chardev, *device]


def _boot(spec: DomainSpec, facts: Facts) -> list[str]:
    config = spec.config
    arguments: list[str] = []
    if config.type is DomainType.PVH:
        arguments += ["-bios", QBOOT]
    elif config.firmware is Firmware.UEFI:
        arguments += [
            *(
                "-blockdev",
                f"driver=raw,node-name=code,read-only=on,file.driver=file,file.filename={facts.firmware_code}",
            ),
            *("-blockdev", f"driver=raw,node-name=variables,file.driver=file,file.filename={facts.firmware_variables}"),
        ]
        if config.secure_boot:
            # The variables can be written from system management mode only, where the firmware checks what is written.
            arguments += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    if config.type is DomainType.HVM:
        arguments += ["-boot", "menu=off,strict=on"]
    if facts.kernel:
        arguments += ["-kernel", facts.kernel]
        if facts.ramdisk:
            arguments += ["-initrd", facts.ramdisk]
        arguments += ["-append", kernel_command_line(spec, facts.accelerator)]
    return arguments


def boot_indices(config: DomainConfig, *, direct: bool) -> tuple[dict[str, int], dict[int, int]]:
    """The firmware's order of trying, from ``boot`` (c disks, d CD-ROMs, n networks): by vdev, and by vif number.

    Empty if the kernel is loaded directly (``direct``): QEMU itself then takes the first place.
    """
    disks: dict[str, int] = {}
    vifs: dict[int, int] = {}
    if config.type is DomainType.PVH or direct:
        return disks, vifs
    for letter in config.boot:
        if letter == "n":
            for number in range(len(config.vif)):
                vifs[number] = len(disks) + len(vifs)
        for disk in config.disk:
            if (letter, disk.devtype) in (("c", DiskType.DISK), ("d", DiskType.CDROM)):
                disks[disk.vdev] = len(disks) + len(vifs)
    return disks, vifs


def _devices(spec: DomainSpec, facts: Facts) -> list[str]:
    config = spec.config
    disk_order, vif_order = boot_indices(config, direct=spec.kernel is not None)
    arguments = [*_root_ports(spec), *disk_arguments(spec, facts.drives, disk_order)]
    for place, (number, vif, netdev) in enumerate(zip(vif_numbers(config.vif), config.vif, facts.netdevs, strict=True)):
        device = card(spec, number, vif)
        if (index := vif_order.get(place)) is not None:
            # A boot ROM costs a second and shows a prompt.
            device = {key: value for key, value in device.items() if key != "romfile"} | {"bootindex": index}
        arguments += ["-netdev", netdev, "-device", device_words(device)]
    return [
        *arguments,
        *("-device", _pci(spec, BALLOON, "virtio-balloon-pci")),
        *("-device", "pvpanic"),
        *("-device", _pci(spec, RANDOM, "virtio-rng-pci")),
        # A port of its own on a bus of its own: a console may be on another one, or on none.
        *("-chardev", f"socket,id=agent,fd={facts.agent_fd},server=on,wait=off"),
        *("-device", _pci(spec, AGENTS, "virtio-serial-pci", id=AGENTS)),
        *("-device", f"virtserialport,bus={AGENTS}.0,chardev=agent,name={PORT_NAME},id={AGENT_PORTS[AgentKind.PYXEN]}"),
        *(_qga(facts) if spec.qga else ()),
    ]


def _root_ports(spec: DomainSpec) -> list[str]:
    """Places on an express bus for what may come and go; without I/O ports, of which there aren't enough for all."""
    words: list[str] = []
    for number, slot in enumerate(PORTS if PORT_GROUPS[0] in spec.slots else ()):
        group, function = divmod(number, FUNCTIONS)
        port: dict[str, object] = {
            "driver": "pcie-root-port",
            "id": port_name(slot),
            "chassis": number + 1,
            "io-reserve": 0,
            "bus": bus(spec.config),
            "addr": f"{spec.slots[PORT_GROUPS[group]]:#x}.{function}",
        }
        words += ["-device", device_words(port | ({} if function else {"multifunction": True}))]
    return words


def _qga(facts: Facts) -> list[str]:
    port = f"virtserialport,bus={AGENTS}.0,chardev=qga,name={qga.PORT_NAME},id={AGENT_PORTS[AgentKind.QEMU]}"
    return ["-chardev", f"socket,id=qga,fd={facts.qga_fd},server=on,wait=off", "-device", port]


def _shares(spec: DomainSpec, facts: Facts) -> list[str]:
    arguments: list[str] = []
    for share, path in zip(spec.config.p9, facts.shares, strict=True):
        device = share_device(share.tag)
        # Files of several file systems below one folder may have the same inode number.
        backend = f"local,id={device},path={path},security_model=none,multidevs=remap"
        arguments += ["-fsdev", f"{backend},readonly={'on' if share.readonly else 'off'}"]
        arguments += ["-device", _pci(spec, device, "virtio-9p-pci", fsdev=device, mount_tag=share.tag)]
    return arguments


def card(spec: DomainSpec, number: int, vif: Vif) -> dict[str, object]:
    """The network card of a laid-out spec, as QMP's device_add takes it."""
    return {
        "driver": _network_card(spec.config, vif),
        "id": vif_device(number),
        "netdev": f"vif{number}",
        "mac": vif.mac,
        "romfile": "",
        **address(spec.config, spec.slots, vif_device(number)),
    }


def _pci(spec: DomainSpec, device: str, driver: str, **properties: object) -> str:
    return device_words({"driver": driver, **properties, **address(spec.config, spec.slots, device)})


def balloons(config: DomainConfig) -> bool:
    """Does the guest start with less memory than it may have? Then a balloon holds the rest from the beginning."""
    return config.maxmem is not None and config.maxmem > config.memory


def _network_card(config: DomainConfig, vif: Vif) -> str:
    if config.type is DomainType.PVH or vif.paravirtual:
        return "virtio-net-pci"
    assert vif.model is not None
    return vif.model


def _hvm_devices(spec: DomainSpec, facts: Facts) -> list[str]:
    arguments: list[str] = []
    if spec.generation is not None:
        # Not for pvh domains: qboot can't tell QEMU where it has put the number in the guest's memory.
        arguments += ["-device", f"vmgenid,guid={spec.generation}"]
    if spec.config.vga in VGA_MODELS:
        arguments += ["-device", _pci(spec, DISPLAY, VGA_MODELS[spec.config.vga])]
    if facts.tpm_fd is not None:
        arguments += ["-chardev", f"socket,id=tpm,fd={facts.tpm_fd}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        arguments += ["-device", "tpm-crb,tpmdev=tpm0"]
    # Where there is another controller too, these stay with the machine's own.
    place = ",bus=usb-bus.0" if USB in spec.slots else ""
    for device in spec.config.usbdevice:
        arguments += ["-device", {"keyboard": "usb-kbd"}.get(device, f"usb-{device}") + place]
    arguments += passthrough.arguments(spec, facts.usb)
    if facts.vnc:
        arguments += ["-vnc", facts.vnc]
    return arguments
