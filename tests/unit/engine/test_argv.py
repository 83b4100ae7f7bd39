"""QEMU's command line, word by word: what a description leads to is a promise, so a change must be seen."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from pyxen.config.model import (
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    Firmware,
    PciDevice,
    Share,
    UsbDevice,
    UsbType,
    Vif,
)
from pyxen.engine.contract import DomainSpec
from pyxen.engine.layers import Drive, Layer
from pyxen.engine.passthrough import usb
from pyxen.engine.process import marker
from pyxen.engine.qemu.argv import Facts, boot_indices, build, kernel_command_line
from pyxen.engine.qemu.passthrough import Opened

MAC = "00:16:3e:00:00:01"


def make(config: DomainConfig, *, cmdline: str = "", directory: str = "/run/d/7", **facts: object) -> list[str]:
    spec = DomainSpec(domid=7, uuid="0000-7", config=config, cmdline=cmdline, qga=True)
    drives = [
        Drive(disk, (Layer(f"/dev/fdset/{number}", disk.format.value),) if disk.target else ())
        for number, disk in enumerate(config.disk, 1)
    ]
    known = {
        "accelerator": "tcg",
        "host_cpus": 2,
        "control_fd": 9,
        "agent_fd": 10,
        "qga_fd": 11,
        "drives": drives,
        **facts,
    }
    known["netdevs"] = [f"user,id=vif{number}" for number in range(len(config.vif))]
    return build(spec, Facts(binary="/bin/qemu", directory=Path(directory), **known))  # type: ignore[arg-type]


def after(words: list[str], option: str) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == option]


def test_a_pvh_domain() -> None:
    config = DomainConfig(
        name="web",
        memory=512,
        disk=(Disk(vdev="xvda", target="/srv/a.img", format=DiskFormat.RAW),),
        vif=(Vif(mac=MAC),),
    )
    assert make(config, cmdline="quiet", kernel="/k/vmlinux", ramdisk="/k/initrd") == [
        "/bin/qemu",
        *("-name", "guest=web,debug-threads=on"),
        *("-uuid", "0000-7"),
        *("-L", marker(Path("/run/d/7"))),
        *("-nodefaults", "-no-user-config", "-S"),
        *("-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-chardev", "pipe,id=events,path=events"),
        *("-mon", "chardev=events,mode=control"),
        *("-chardev", "socket,id=control,fd=9,server=on,wait=off"),
        *("-mon", "chardev=control,mode=control"),
        *("-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause"),
        *("-machine", "pc,usb=off,vmport=off,hpet=off,smm=off,graphics=off,dump-guest-core=off,mem-merge=off"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "max"),
        *("-smp", "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"),
        *("-m", "size=512M"),
        *("-rtc", "base=utc"),
        *("-chardev", "pipe,id=console0,path=console"),
        *("-serial", "chardev:console0"),
        *("-bios", "/usr/share/qemu/qboot.rom"),
        *("-kernel", "/k/vmlinux"),
        *("-initrd", "/k/initrd"),
        *("-append", "console=ttyS0 no_timer_check quiet"),
        "-blockdev",
        "driver=raw,node-name=xvda.0,read-only=off,file.driver=file,file.filename=/dev/fdset/1,"
        "discard=unmap,file.discard=unmap",
        *("-device", "virtio-blk-pci,id=xvda,serial=xvda,bus=pci.0,addr=0x2,drive=xvda.0"),
        *("-netdev", "user,id=vif0"),
        *("-device", f"virtio-net-pci,id=nic0,netdev=vif0,mac={MAC},romfile=,bus=pci.0,addr=0x3"),
        *("-device", "virtio-balloon-pci,bus=pci.0,addr=0x4"),
        *("-device", "pvpanic"),
        *("-device", "virtio-rng-pci,bus=pci.0,addr=0x5"),
        *("-chardev", "socket,id=agent,fd=10,server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=agents,bus=pci.0,addr=0x6"),
        *("-device", "virtserialport,bus=agents.0,chardev=agent,name=org.pyxen.agent.0,id=agent-port"),
        *("-chardev", "socket,id=qga,fd=11,server=on,wait=off"),
        *("-device", "virtserialport,bus=agents.0,chardev=qga,name=org.qemu.guest_agent.0,id=qga-port"),
    ]


def test_memory_may_be_huge_or_shared() -> None:
    words = make(DomainConfig(name="web", memory=64, maxmem=128, hugepages="2m", memory_sharing=True))
    assert after(words, "-object") == [
        "memory-backend-memfd,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,size=128M,hugetlb=on,hugetlbsize=2M"
    ]
    assert after(words, "-machine")[0].endswith(",mem-merge=on,memory-backend=pc.ram")


def test_what_windows_wants() -> None:
    config = DomainConfig(
        name="win",
        type=DomainType.HVM,
        hdtype="ahci",
        firmware=Firmware.UEFI,
        secure_boot=True,
        tpm=True,
        viridian=True,
    )
    files = {"firmware_code": "/dev/fdset/1", "firmware_variables": "/dev/fdset/2"}
    words = make(config, accelerator="kvm", tpm_fd=14, **files)
    (machine,) = after(words, "-machine")
    assert machine.startswith("q35,") and ",pflash0=code,pflash1=variables,smm=on," in machine
    assert after(words, "-global") == ["driver=cfi.pflash01,property=secure,value=on"]
    assert after(words, "-tpmdev") == ["emulator,id=tpm0,chardev=tpm"]
    assert "socket,id=tpm,fd=14" in after(words, "-chardev") and "tpm-crb,tpmdev=tpm0" in after(words, "-device")
    (cpu,) = after(words, "-cpu")
    assert cpu.startswith("host,hv-relaxed,hv-vapic,hv-spinlocks=0x1fff,")
    assert after(make(config, **files), "-cpu") == ["max"]


def test_folders_and_gdb() -> None:
    config = DomainConfig(name="web", p9=(Share(tag="src", path="/srv", readonly=True), Share(tag="out", path="/out")))
    words = make(config, shares=["/proc/self/fd/11", "/proc/self/fd/12"], gdb_fd=13)
    assert after(words, "-fsdev") == [
        "local,id=p9-src,path=/proc/self/fd/11,security_model=none,multidevs=remap,readonly=on",
        "local,id=p9-out,path=/proc/self/fd/12,security_model=none,multidevs=remap,readonly=off",
    ]
    assert "virtio-9p-pci,fsdev=p9-out,mount_tag=out,bus=pci.0,addr=0x6" in after(words, "-device")
    assert "socket,id=gdb,fd=13,server=on,wait=off" in after(words, "-chardev")
    assert after(words, "-gdb") == ["chardev:gdb"]
    assert "-gdb" not in make(DomainConfig(name="web"))


def test_an_hvm_domain_boots_as_told() -> None:
    config = DomainConfig(
        name="win",
        type=DomainType.HVM,
        boot="dcn",
        vnc=True,
        usbdevice=("tablet",),
        localtime=True,
        disk=(
            Disk(vdev="hda", target="/srv/c.qcow2", format=DiskFormat.QCOW2),
            Disk(vdev="hdc", target="/srv/cd.iso", format=DiskFormat.RAW, devtype=DiskType.CDROM),
            Disk(vdev="xvdb", target="/srv/b.img", format=DiskFormat.RAW, access=DiskAccess.READ),
        ),
        vif=(Vif(mac=MAC, model="e1000"),),
    )
    words = make(config, vnc="127.0.0.1:3")
    assert after(words, "-machine") == ["pc,vmport=off,usb=on,dump-guest-core=off,mem-merge=off"]
    assert after(words, "-rtc") == ["base=localtime"]
    assert after(words, "-vnc") == ["127.0.0.1:3"]
    assert after(words, "-device") == [
        "ide-hd,id=hda,bus=ide.0,unit=0,drive=hda.0,bootindex=1",
        "virtio-blk-pci,id=xvdb,serial=xvdb,bus=pci.0,addr=0x2,drive=xvdb.0,bootindex=2",
        "ide-cd,id=hdc,bus=ide.1,unit=0,drive=hdc.0,bootindex=0",
        f"e1000,id=nic0,netdev=vif0,mac={MAC},bus=pci.0,addr=0x3,bootindex=3",
        "virtio-balloon-pci,bus=pci.0,addr=0x4",
        "pvpanic",
        "virtio-rng-pci,bus=pci.0,addr=0x5",
        "virtio-serial-pci,id=agents,bus=pci.0,addr=0x6",
        "virtserialport,bus=agents.0,chardev=agent,name=org.pyxen.agent.0,id=agent-port",
        "virtserialport,bus=agents.0,chardev=qga,name=org.qemu.guest_agent.0,id=qga-port",
        "VGA,bus=pci.0,addr=0x7",
        "usb-tablet",
    ]
    assert [node for node in after(words, "-blockdev") if "read-only=off" not in node] == [
        "driver=raw,node-name=xvdb.0,read-only=on,file.driver=file,file.filename=/dev/fdset/3",
        "driver=raw,node-name=hdc.0,read-only=on,file.driver=file,file.filename=/dev/fdset/2",
    ]


def test_ahci_and_an_empty_drive() -> None:
    config = DomainConfig(
        name="h",
        type=DomainType.HVM,
        hdtype="ahci",
        disk=(Disk(vdev="hda", target="/a", format=DiskFormat.RAW), Disk(vdev="sdb", devtype=DiskType.CDROM)),
    )
    words = make(config)
    assert after(words, "-machine")[0].startswith("q35,")
    ports, devices = after(words, "-device")[:16], after(words, "-device")[16:]
    assert ports[:2] == [
        "pcie-root-port,id=port0,chassis=1,io-reserve=0,bus=pcie.0,addr=0x1.0,multifunction=on",
        "pcie-root-port,id=port1,chassis=2,io-reserve=0,bus=pcie.0,addr=0x1.1",
    ]
    assert ports[-1] == "pcie-root-port,id=port15,chassis=16,io-reserve=0,bus=pcie.0,addr=0x2.7"
    assert devices[:3] == [
        "ich9-ahci,id=sata,bus=pcie.0,addr=0x3",
        "ide-hd,id=hda,bus=ide.0,drive=hda.0,bootindex=0",
        "ide-cd,id=sdb,bus=sata.1",
    ]


def test_uefi_has_code_and_variables() -> None:
    config = DomainConfig(name="u", type=DomainType.HVM, firmware=Firmware.UEFI)
    words = make(config, firmware_code="/dev/fdset/1", firmware_variables="/dev/fdset/2")
    assert "pflash0=code,pflash1=variables" in after(words, "-machine")[0]
    assert after(words, "-blockdev") == [
        "driver=raw,node-name=code,read-only=on,file.driver=file,file.filename=/dev/fdset/1",
        "driver=raw,node-name=variables,file.driver=file,file.filename=/dev/fdset/2",
    ]


def test_layers_are_given_from_the_bottom() -> None:
    disk = Disk(vdev="xvda", target="/srv/top.qcow2", format=DiskFormat.QCOW2)
    drive = Drive(disk, (Layer("/dev/fdset/1", "qcow2"), Layer("/dev/fdset/2", "raw", block_device=True)))
    nodes = after(make(DomainConfig(name="x", disk=(disk,)), drives=[drive]), "-blockdev")
    assert nodes == [
        "driver=raw,node-name=xvda.1,read-only=on,file.driver=host_device,file.filename=/dev/fdset/2",
        "driver=qcow2,node-name=xvda.0,read-only=off,file.driver=file,file.filename=/dev/fdset/1,"
        "discard=unmap,file.discard=unmap,backing=xvda.1",
    ]


def test_pvh_disks_come_in_the_order_of_their_letters() -> None:
    disks = tuple(Disk(vdev=vdev, target="/a", format=DiskFormat.RAW) for vdev in ("xvdaa", "xvdb", "sda", "hdz"))
    devices = after(make(DomainConfig(name="x", disk=disks)), "-device")
    assert [device.split(",")[1] for device in devices[:4]] == ["id=sda", "id=xvdb", "id=hdz", "id=xvdaa"]


@pytest.mark.parametrize(
    ("cmdline", "whole"),
    [
        ("", "console=ttyS0"),
        ("root=/dev/vda quiet", "console=ttyS0 root=/dev/vda quiet"),
        ("console=tty0", "console=tty0"),
        ("netconsole=x", "console=ttyS0 netconsole=x"),
    ],
)
def test_the_console_is_named_unless_it_is(cmdline: str, whole: str) -> None:
    spec = DomainSpec(domid=1, uuid="u", config=DomainConfig(name="x"), cmdline=cmdline)
    assert kernel_command_line(spec, "kvm") == whole


def test_hvc0_is_a_virtio_console() -> None:
    words = make(DomainConfig(name="x"), cmdline="console=hvc0")
    assert "virtconsole,chardev=console0" in after(words, "-device")
    assert "-serial" not in words


def test_kvm_takes_the_hosts_cpu_and_many_vcpus_share_a_thread() -> None:
    kvm = make(DomainConfig(name="x"), accelerator="kvm")
    assert (after(kvm, "-accel"), after(kvm, "-cpu")) == (["kvm"], ["host"])
    many = make(DomainConfig(name="x", vcpus=3, maxvcpus=8))
    assert after(many, "-accel") == ["tcg,thread=single"]


@pytest.mark.parametrize(("accelerator", "model"), [("kvm", "host"), ("tcg", "max")])
def test_all_vcpus_but_the_first_are_devices_that_can_be_unplugged(accelerator: str, model: str) -> None:
    words = make(DomainConfig(name="x", vcpus=3, maxvcpus=8), accelerator=accelerator)
    assert after(words, "-smp") == ["cpus=1,maxcpus=8,sockets=1,cores=8,threads=1"]
    assert [word for word in after(words, "-device") if "-cpu," in word] == [
        f"{model}-x86_64-cpu,id=cpu{number},socket-id=0,core-id={number},thread-id=0" for number in (1, 2)
    ]


def test_a_folder_may_have_any_name() -> None:
    words = make(DomainConfig(name="x"), directory="/run/a,b=c %s/7")
    assert [word for word in words if "/run" in word] == [marker(Path("/run/a,b=c %s/7"))]


def test_direct_boot_has_no_boot_order() -> None:
    config = DomainConfig(name="x", type=DomainType.HVM, boot="cn", disk=(Disk(vdev="hda", target="/a"),))
    assert boot_indices(config, direct=True) == ({}, {})
    assert boot_indices(config, direct=False) == ({"hda": 0}, {})


@pytest.mark.parametrize(
    ("accelerator", "cmdline", "whole"),
    [
        ("tcg", "console=hvc0 quiet", "no_timer_check console=hvc0 quiet"),
        ("kvm", "console=hvc0 quiet", "console=hvc0 quiet"),
        ("tcg", "no_timer_check console=hvc0", "no_timer_check console=hvc0"),
    ],
)
def test_under_tcg_the_guest_does_not_time_its_timer(accelerator: str, cmdline: str, whole: str) -> None:
    spec = DomainSpec(domid=1, uuid="u", config=DomainConfig(name="x"), cmdline=cmdline)
    assert kernel_command_line(spec, accelerator) == whole


def test_memory_in_a_file_has_the_name_that_a_saved_state_knows() -> None:
    known: dict[str, Any] = {"kernel": "/k/vmlinux", "memory": "/proc/self/fd/9", "incoming": True}
    words = make(DomainConfig(name="web", memory=256), **known, memory_shared=True)
    (machine,), (memory,) = after(words, "-machine"), after(words, "-object")
    assert after(words, "-global") == ["migration.store-global-state=off"]
    assert machine.endswith(",memory-backend=pc.ram")
    assert memory == (
        "memory-backend-file,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,size=256M,"
        "mem-path=/proc/self/fd/9,share=on"
    )
    words = make(DomainConfig(name="web", memory=256), **known)
    assert not after(words, "-global")
    (memory,) = after(words, "-object")
    assert memory.endswith(",share=off")


def test_a_guest_that_goes_on_needs_no_kernel_but_the_same_devices() -> None:
    config = DomainConfig(name="x", type=DomainType.HVM, boot="nc", vif=(Vif(mac=MAC),))
    spec = DomainSpec(domid=1, uuid="u", config=config, kernel="/k/vmlinuz")
    known: dict[str, Any] = {"binary": "/bin/qemu", "directory": Path("/run/d/1"), "accelerator": "tcg", "host_cpus": 2}
    known |= {"control_fd": 9, "agent_fd": 10, "qga_fd": 11, "netdevs": ["user,id=vif0"]}
    booted = build(spec, Facts(**known, kernel="/k/vmlinuz"))
    goes_on = build(spec, Facts(**known, incoming=True))
    assert after(booted, "-kernel") == ["/k/vmlinuz"]
    assert not after(goes_on, "-kernel")
    assert after(goes_on, "-device") == after(booted, "-device")


def test_devices_of_the_host_and_usb() -> None:
    config = DomainConfig(
        name="box",
        type=DomainType.HVM,
        vga="none",
        usbdevice=("tablet",),
        pci=(PciDevice("0000:03:00.0"), PciDevice("0000:03:00.1", vslot=9)),
        usbdev=(
            UsbDevice(type=UsbType.DISK, target="/srv/a.img", format=DiskFormat.RAW, readonly=True, devid=3),
            UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=2),
            UsbDevice(type=UsbType.REDIR, peer="a:1"),
        ),
    )
    drive = Drive(usb.as_disk(3, config.usbdev[0]), (Layer("/dev/fdset/7", "raw"),))
    opened = [Opened(drive=drive), Opened(node="/dev/fdset/8"), Opened(socket=21)]
    words = make(config, usb=opened)
    assert [
        device for device in after(words, "-device") if "usb" in device or "vfio" in device or "xhci" in device
    ] == [
        "usb-tablet,bus=usb-bus.0",
        "qemu-xhci,id=usb,p2=15,p3=15,bus=pci.0,addr=0x5",
        "usb-storage,id=usb3,bus=usb.0,port=4,drive=usb3.0,removable=on",
        "usb-host,id=usb0,bus=usb.0,port=1,hostdevice=/dev/fdset/8",
        "usb-redir,id=usb1,bus=usb.0,port=2,chardev=usb1",
        "vfio-pci,id=pci-0000-03-00.0,host=0000:03:00.0,bus=pci.0,addr=0x6",
        "vfio-pci,id=pci-0000-03-00.1,host=0000:03:00.1,bus=pci.0,addr=0x9",
    ]
    assert "socket,id=usb1,fd=21" in after(words, "-chardev")
    (node,) = after(words, "-blockdev")
    assert node == "driver=raw,node-name=usb3.0,read-only=on,file.driver=file,file.filename=/dev/fdset/7"


def test_a_controller_alone() -> None:
    words = make(DomainConfig(name="box", type=DomainType.HVM, hdtype="ahci", usb=True))
    assert "qemu-xhci,id=usb,p2=15,p3=15,bus=pcie.0,addr=0x7" in after(words, "-device")
