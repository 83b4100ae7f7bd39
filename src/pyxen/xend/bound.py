"""What ties a running domain to this host, so that its state can't be kept or go elsewhere."""

from __future__ import annotations

from pyxen.config.model import DomainConfig, UsbType, usb_numbers
from pyxen.errors import Unsupported


def check_state(config: DomainConfig) -> None:
    """Raises Unsupported for a domain with devices whose state QEMU can't write, or nobody could go on with."""
    if config.pci:
        address = config.pci[0].address
        raise Unsupported(
            f"'{config.name}' has the host's PCI device {address}, whose state can't be read: it can be neither saved "
            "nor moved",
            hint=f"First: xm pci-detach {config.name} {address}",
        )
    for number, device in zip(usb_numbers(config.usbdev), config.usbdev, strict=True):
        if device.type is not UsbType.DISK:
            what = "a USB device of the host" if device.type is UsbType.HOST else f"the USB device at {device.peer}"
            raise Unsupported(
                f"'{config.name}' has {what}, which would be in another state when it goes on: it can be neither saved "
                "nor moved",
                hint=f"First: xm usb-detach {config.name} {number}",
            )


def check_copy(config: DomainConfig) -> None:
    """The same for what would have to be copied along with the state, and isn't."""
    for number, device in zip(usb_numbers(config.usbdev), config.usbdev, strict=True):
        if device.type is UsbType.DISK:
            raise Unsupported(
                f"'{config.name}' has {device.target} as a USB disk, which no copy is made of",
                hint=f"First: xm usb-detach {config.name} {number}",
            )
