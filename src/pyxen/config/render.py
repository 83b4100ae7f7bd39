"""From a DomainConfig back to the text of a file, which reads back as the same DomainConfig."""

from __future__ import annotations

from enum import Enum

import msgspec

from pyxen.config.keys import KEYS, Kind
from pyxen.config.model import Disk, DiskFormat, DiskType, DomainConfig, PciDevice, Share, UsbDevice, UsbType, Vif


def render(config: DomainConfig) -> str:
    """``KEY = VALUE`` lines, in the order of the reference, for all that differs from the defaults."""
    usual = DomainConfig(name=config.name)
    lines = []
    for name, key in KEYS.items():
        value = getattr(config, name)
        if name != "name" and value == getattr(usual, name):
            continue
        if key.kind is Kind.DISKS:
            value = tuple(render_disk(disk) for disk in value)
        elif key.kind is Kind.VIFS:
            value = tuple(render_vif(vif) for vif in value)
        elif key.kind is Kind.SHARES:
            value = tuple(render_share(share) for share in value)
        elif key.kind is Kind.PCIS:
            value = tuple(render_pci(device) for device in value)
        elif key.kind is Kind.USBS:
            value = tuple(render_usb(device) for device in value)
        lines.append(f"{name} = {literal(value)}\n")
    return "".join(lines)


def render_disk(disk: Disk) -> str:
    """The disk as xl writes it: ``format=raw,vdev=xvda,access=rw,target=/srv/web.img``."""
    access = {"r": "ro", "w": "rw"}.get(disk.access, str(disk.access))
    parts = [f"format={disk.format}", f"vdev={disk.vdev}", f"access={access}"]
    if disk.devtype is DiskType.CDROM:
        parts.append("devtype=cdrom")
    if disk.rate:
        parts.append(f"rate={disk.rate}B/s")
    if disk.iops:
        parts.append(f"iops={disk.iops}")
    if disk.target:
        parts.append(f"target={disk.target}")
    return ",".join(parts)


def render_vif(vif: Vif) -> str:
    """The interface as xm writes it: ``mac=00:16:3e:01:02:03,bridge=br0``; empty for one with defaults."""
    parts = [f"{key}={value}" for key in ("mac", "bridge", "vifname") if (value := getattr(vif, key))]
    if vif.rate:
        parts.append(f"rate={vif.rate}B/s")
    if vif.model:
        parts.append(f"model={vif.model}")
    if vif.devid is not None:
        parts.append(f"devid={vif.devid}")
    if vif.forward:
        forwards = (f"{port.protocol}:{port.address}:{port.host}:{port.guest}" for port in vif.forward)
        parts.append("forward=" + "+".join(forwards))
    return ",".join(parts)


def render_share(share: Share) -> str:
    """The folder as xl writes it: ``tag=src,path=/srv/src``."""
    return f"tag={share.tag},path={share.path}" + (",readonly=1" if share.readonly else "")


def render_pci(device: PciDevice) -> str:
    """The device as xm writes it: ``0000:03:00.0@05``, with options after a comma."""
    slot = "" if device.vslot is None else f"@{device.vslot:02x}"
    return f"{device.address}{slot}" + (",seize=1" if device.seize else "")


def render_usb(device: UsbDevice) -> str:
    """The device as ``usbdev`` has it: ``hostbus=1,hostaddr=3``, ``host:046d:c077``, ``disk:/srv/stick.img``."""
    parts: list[str] = []
    if device.type is UsbType.DISK:
        if device.format is not DiskFormat.AUTO:
            parts.append(f"format={device.format}")
        if device.readonly:
            parts.append("readonly=1")
    elif device.type is UsbType.REDIR:
        parts.append(f"redir={device.peer}")
    elif device.vendor is not None:
        parts.append(f"host:{device.vendor}:{device.product}")
    else:
        parts.append(f"hostbus={device.hostbus},hostaddr={device.hostaddr}")
    if device.devid is not None:
        parts.append(f"devid={device.devid}")
    if device.type is UsbType.DISK:
        parts.append(f"disk:{device.target}")  # the last: it may hold commas
    return ",".join(parts)


def literal(value: object) -> str:
    """A value of the model in the notation of a file."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()  # JSON's escapes are Python's
    if isinstance(value, tuple):
        items = [literal(item) for item in value]
        if sum(map(len, items)) < 80:
            return f"[{', '.join(items)}]"
        return "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    raise TypeError(f"{type(value).__name__} can't be in a domain's description")
