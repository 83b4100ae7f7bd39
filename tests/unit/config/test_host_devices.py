"""Entries of ``pci`` and ``usbdev``, as xm and xl write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.config.build import load_text
from pyxen.config.check import check
from pyxen.config.model import DiskFormat, DomainConfig, DomainType, PciDevice, UsbDevice, UsbType, usb_numbers
from pyxen.config.pci import full_address, parse_pci
from pyxen.config.usb import parse_usb
from pyxen.errors import ConfigError


def host(**parts: object) -> UsbDevice:
    return UsbDevice(type=UsbType.HOST, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("0000:03:00.0", PciDevice(address="0000:03:00.0")),
        ("3:0.1", PciDevice(address="0000:03:00.1")),
        ("10000:E1:1F.7@0A", PciDevice(address="10000:e1:1f.7", vslot=10)),
        ("03:00.0,5,permissive=0,msitranslate=0", PciDevice(address="0000:03:00.0", vslot=5)),
        ("bdf=03:00.0, vslot=1f, seize=1, rdm_policy=relaxed", PciDevice("0000:03:00.0", vslot=31, seize=True)),
    ],
)
def test_pci_as_xm_and_xl_write_it(text: str, device: PciDevice) -> None:
    assert parse_pci(text) == device


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is no PCI device's address"),
        ("03:00", "'03:00' is no PCI device's address"),
        ("03:20.0", "no PCI device's address"),
        ("03:00.0@20", "'20' is no slot"),
        ("03:00.0@0", "'0' is no slot"),
        ("03:00.0,permissive=1", "there is no permissive: VFIO checks what a guest writes"),
        ("03:00.0,msitranslate=1", "there is no msitranslate: VFIO delivers INTx itself"),
        ("03:00.0,power_mgmt=1", "there is no power_mgmt"),
        ("03:00.0,rdm_policy=strict", "there is no rdm_policy"),
        ("03:00.0,seize=yes", "seize is 0 or 1"),
        ("03:00.0,sieze=1", "unknown option 'sieze'; did you mean 'seize'"),
        ("03:00.0,5,x", "'x' should be a pair"),
        ("seize=1", "address is missing"),
    ],
)
def test_pci_that_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_pci(text)
    assert caught.value.key == "pci"


def test_an_address_is_written_out() -> None:
    assert full_address("3:a.0") == "0000:03:0a.0"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("hostbus=1,hostaddr=3", host(hostbus=1, hostaddr=3)),
        ("type=hostdev, hostbus=1, hostaddr=3, controller=0", host(hostbus=1, hostaddr=3)),
        ("host:1.3", host(hostbus=1, hostaddr=3)),
        ("host:46D:0xc077,devid=2", host(vendor="046d", product="c077", devid=2)),
        ("redir=192.0.2.7:4000", UsbDevice(type=UsbType.REDIR, peer="192.0.2.7:4000")),
        ("redir=unix:/run/usb.sock", UsbDevice(type=UsbType.REDIR, peer="unix:/run/usb.sock")),
        ("disk:/srv/a,b.img", UsbDevice(type=UsbType.DISK, target="/srv/a,b.img")),
        ("disk:a.img", UsbDevice(type=UsbType.DISK, target="/here/a.img")),
        (
            "format=qcow2,readonly=1,target=/srv/a",
            UsbDevice(type=UsbType.DISK, target="/srv/a", format=DiskFormat.QCOW2, readonly=True),
        ),
    ],
)
def test_usb_in_all_its_forms(text: str, device: UsbDevice) -> None:
    assert parse_usb(text, base=Path("/here")) == device


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it does not say which device"),
        ("host:x", "'x' is neither BUS.ADDRESS nor VENDOR:PRODUCT"),
        ("host:1.300", "usbdev.hostaddr must be an address from 1 to 127"),
        ("redir=/run/x", "usbdev.peer must be HOST:PORT or unix:PATH"),
        ("hostbus=one", "hostbus must be a number"),
        ("disk:", "usbdev.target must be a path"),
        ("readonly=2,disk:/a", "readonly is 0 or 1"),
        ("hostbus=1,hostaddr=2,controller=3", "controller=3 has no meaning here"),
        ("speed=3", "unknown option 'speed'"),
        ("tablet", "'tablet' should be a pair"),
    ],
)
def test_usb_that_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_usb(text)
    assert caught.value.key == "usbdev"


def hvm(**keys: object) -> DomainConfig:
    return DomainConfig(name="x", type=DomainType.HVM, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (hvm(pci=(PciDevice("0000:03:00.0"), PciDevice("0000:03:00.0"))), '"0000:03:00.0" is already given'),
        (hvm(pci=(PciDevice("0000:03:00.0", 5), PciDevice("0000:04:00.0", 5))), 'The slot "5" is already taken'),
        (hvm(usbdev=(host(hostbus=1),)), "named by hostbus and hostaddr, or by vendor and product"),
        (hvm(usbdev=(host(hostbus=1, hostaddr=2, vendor="046d", product="c077"),)), "named by hostbus and hostaddr"),
        (hvm(usbdev=(host(),)), "named by hostbus and hostaddr"),
        (hvm(usbdev=(UsbDevice(type=UsbType.REDIR),)), "redir needs HOST:PORT or unix:PATH"),
        (hvm(usbdev=(UsbDevice(type=UsbType.DISK),)), "must be an absolute path"),
        (hvm(usbdev=(host(vendor="046d", product="c077", target="/a"),)), "target means nothing for one of type host"),
        (hvm(usbdev=(UsbDevice(type=UsbType.DISK, target="/a"),) * 2), 'The file "/a" is already used'),
        (
            hvm(usbdev=(host(hostbus=1, hostaddr=1, devid=1), host(hostbus=1, hostaddr=2, devid=1))),
            'The devid "1" is already defined',
        ),
    ],
)
def test_what_can_not_be_together(config: DomainConfig, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(config)


def test_a_file_of_xm_s() -> None:
    text = """
type = "hvm"; disk = ["/a,,hda"]; usb = 1
usbdevice = ["tablet", "host:1.3"]
pci = ["03:00.0,msitranslate=0", "03:00.1@06"]
"""
    config = load_text(text, "x.cfg").config
    assert (config.usb, config.usbdevice, config.usbdev) == (True, ("tablet",), (host(hostbus=1, hostaddr=3),))
    assert [(each.address, each.vslot) for each in config.pci] == [("0000:03:00.0", None), ("0000:03:00.1", 6)]


def test_numbers_stay_when_one_has_gone() -> None:
    one, two, three = (host(hostbus=1, hostaddr=n) for n in (1, 2, 3))
    assert usb_numbers([one, two, three]) == [0, 1, 2]
    assert usb_numbers([host(hostbus=1, hostaddr=1, devid=1), three]) == [1, 0]
