"""Whatever the input: ConfigError or a description, and what is written reads back."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxen.config.build import load_overrides_only, load_text
from pyxen.config.check import check
from pyxen.config.classic import ALIASES
from pyxen.config.decode import decode
from pyxen.config.disk import parse_disk
from pyxen.config.keys import KEYS
from pyxen.config.model import (
    Accelerator,
    Action,
    Disk,
    DiskAccess,
    DiskFormat,
    DiskType,
    DomainConfig,
    DomainType,
    EngineChoice,
    Firmware,
    Forward,
    PciDevice,
    Share,
    UsbDevice,
    UsbType,
    Vif,
    encode,
)
from pyxen.config.pci import parse_pci
from pyxen.config.render import render, render_disk, render_pci, render_usb, render_vif
from pyxen.config.sizes import parse_mib, parse_rate
from pyxen.config.usb import parse_usb
from pyxen.config.vif import parse_vif
from pyxen.errors import ConfigError
from tests.unit.config import fuzz

EXAMPLES = int(os.environ.get("PYXEN_FUZZ", "300"))
many = settings(max_examples=EXAMPLES, deadline=None)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
PATH = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=40).map("/".__add__)
MAC = st.from_regex(r"[02468ace]2(:[0-9a-f]{2}){5}", fullmatch=True)
INTERFACE = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", fullmatch=True)
PORT = st.integers(1, 65535)
ADDRESS = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts)))

FORWARD = st.builds(Forward, PORT, PORT, st.sampled_from(("tcp", "udp")), ADDRESS)
DISK = st.builds(
    Disk,
    st.from_regex(r"(xvd|sd|vd)[a-z]{1,2}", fullmatch=True),
    PATH,
    st.sampled_from(DiskFormat),
    st.sampled_from(DiskAccess),
) | st.builds(
    Disk,
    st.from_regex(r"hd[a-d]", fullmatch=True),
    st.just("") | PATH,
    st.sampled_from(DiskFormat),
    st.just(DiskAccess.READ),
    st.just(DiskType.CDROM),
)
VIF = st.builds(
    Vif,
    mac=st.none() | MAC,
    vifname=st.none() | INTERFACE,
    rate=st.none() | st.integers(1, 10**12),
    model=st.none() | st.sampled_from(("e1000", "rtl8139", "ne2k-pci")),
    bridge=st.none() | INTERFACE,
) | st.builds(Vif, forward=st.lists(FORWARD, max_size=3).map(tuple))
SHARE = st.builds(
    Share,
    st.from_regex(r"[A-Za-z0-9_.-]{1,31}", fullmatch=True),
    PATH.map(lambda path: path.replace(",", "")),
    st.booleans(),
)
PCI = st.builds(
    PciDevice,
    st.from_regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True),
    st.none() | st.integers(1, 31),
    st.booleans(),
)
DEVID = st.none() | st.integers(0, 14)
USB_ID = st.from_regex(r"[0-9a-f]{4}", fullmatch=True)
USB = (
    st.builds(UsbDevice, st.just(UsbType.HOST), hostbus=st.integers(1, 255), hostaddr=st.integers(1, 127), devid=DEVID)
    | st.builds(UsbDevice, st.just(UsbType.HOST), vendor=USB_ID, product=USB_ID, devid=DEVID)
    | st.builds(UsbDevice, st.just(UsbType.REDIR), peer=st.sampled_from(("a:1", "[::1]:7", "unix:/r")), devid=DEVID)
    | st.builds(
        UsbDevice,
        st.just(UsbType.DISK),
        target=PATH.map("/u".__add__),
        format=st.sampled_from(DiskFormat),
        readonly=st.booleans(),
        devid=DEVID,
    )
)
CPUS = st.lists(st.from_regex(r"(\^?(all|(nodes?:)?[0-9]{1,4}),)*\^?[0-9]{1,4}", fullmatch=True), max_size=3).map(tuple)
ACTION = st.sampled_from(Action)
CONFIG = st.builds(
    DomainConfig,
    name=st.from_regex(r"[A-Za-z0-9_:+][A-Za-z0-9_.:+-]{0,20}", fullmatch=True),
    uuid=st.none() | st.uuids().map(str),
    description=TEXT,
    type=st.sampled_from(DomainType),
    engine=st.sampled_from(EngineChoice),
    accel=st.sampled_from(Accelerator),
    memory=st.integers(1, 4096),
    maxmem=st.none() | st.integers(4096, 1 << 24),
    min_memory=st.none() | st.integers(1, 64),
    hugepages=st.sampled_from((None, None, "2m", "1g")),
    memory_sharing=st.booleans(),
    vcpus=st.integers(1, 64),
    maxvcpus=st.none() | st.integers(64, 512),
    cpus=CPUS,
    cpus_soft=CPUS,
    cpu_weight=st.integers(1, 65535),
    cpu_cap=st.integers(0, 6400),
    pool=st.from_regex(r"[A-Za-z0-9_:+][A-Za-z0-9_.:+-]{0,20}", fullmatch=True),
    image=st.none() | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    kernel=PATH.filter(lambda path: not path.endswith("/hvmloader")),
    ramdisk=st.none() | PATH,
    cmdline=st.none() | TEXT,
    root=TEXT,
    extra=TEXT,
    disk=st.lists(DISK, max_size=3, unique_by=(lambda d: d.vdev, lambda d: d.target)).map(tuple),
    vif=st.lists(VIF, max_size=2).map(tuple),
    p9=st.lists(SHARE, max_size=2, unique_by=lambda share: share.tag).map(tuple),
    pci=st.lists(PCI, max_size=2).map(tuple),
    usb=st.booleans(),
    usbdev=st.lists(USB, max_size=2).map(tuple),
    gdb=st.booleans(),
    on_poweroff=ACTION,
    on_reboot=ACTION,
    on_crash=ACTION,
    firmware=st.sampled_from(Firmware),
    tpm=st.booleans(),
    viridian=st.booleans(),
    boot=st.text("acdn", max_size=4),
    hdtype=st.sampled_from(("ide", "ahci")),
    vnc=st.booleans(),
    vnclisten=ADDRESS,
    vncdisplay=st.none() | st.integers(0, 59635),
    vga=st.sampled_from(("stdvga", "cirrus", "qxl", "none")),
    serial=st.sampled_from(("pty", "none")),
    usbdevice=st.lists(st.sampled_from(("tablet", "mouse", "keyboard")), max_size=3).map(tuple),
    localtime=st.booleans(),
    boot_timeout=st.integers(0, 86400),
).map(lambda config: msgspec.structs.replace(config, pci=(), usbdev=()) if config.type == "pvh" else config)


def sound(config: DomainConfig) -> bool:
    try:
        check(config)
    except ConfigError:
        return False
    return True


@many
@given(CONFIG.filter(sound))
def test_what_is_written_reads_back(config: DomainConfig) -> None:
    assert load_text(render(config), "x.cfg", base=Path("/elsewhere")).config == config
    assert decode(encode(config)) == config
    assert decode(msgspec.to_builtins(config)) == config


@many
@given(DISK)
def test_disks_read_back(disk: Disk) -> None:
    assert parse_disk(render_disk(disk)) == disk


@many
@given(VIF)
def test_vifs_read_back(vif: Vif) -> None:
    assert parse_vif(render_vif(vif)) == vif


@many
@given(PCI)
def test_pci_devices_read_back(device: PciDevice) -> None:
    assert parse_pci(render_pci(device)) == device


@many
@given(USB)
def test_usb_devices_read_back(device: UsbDevice) -> None:
    assert parse_usb(render_usb(device)) == device


@many
@given(st.text())
def test_any_text(text: str) -> None:
    fuzz.attempt(text)


@many
@given(st.integers(0, 2**64))
def test_mutated_files(seed: int) -> None:
    fuzz.attempt(fuzz.mutant(random.Random(seed)))


@many
@given(st.sampled_from((*KEYS, *ALIASES)), st.text(max_size=40))
def test_any_word(key: str, value: str) -> None:
    with suppress(ConfigError):
        load_overrides_only([f"{key}={value}", "name=x"], base=Path("/"))
    with suppress(ConfigError):
        load_overrides_only([value], base=Path("/"))
    with suppress(ConfigError):
        load_text(f"{key} = {value!r}\n", "x.cfg")


@many
@given(st.text("fileph:ytaxvdr,w=/cdom1 \0\n!gr", max_size=40) | st.text())
def test_any_disk_vif_and_size(text: str) -> None:
    for read in (parse_disk, parse_vif, parse_rate, parse_mib):
        with suppress(ConfigError):
            read(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(KEYS)) | st.text(), inner),
    max_leaves=10,
)


@many
@given(JSON | st.dictionaries(st.sampled_from(list(KEYS)), JSON))
def test_any_object(value: object) -> None:
    with suppress(ConfigError):
        decode(value)
    with suppress(ConfigError):
        decode(msgspec.json.encode(value))


@many
@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    with suppress(ConfigError):
        decode(data)
