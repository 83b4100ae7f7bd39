"""From files and command-line words to descriptions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.config.build import load_file, load_overrides_only, load_text
from pyxen.config.classic import ALIASES, WITHOUT_EFFECT
from pyxen.config.keys import KEYS
from pyxen.config.model import Action, Disk, DiskFormat, DomainConfig, DomainType, Firmware, Vif
from pyxen.errors import ConfigError

BASE = Path("/here")
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.cfg"))


def load(text: str, *overrides: str) -> DomainConfig:
    return load_text(text, "dir/web.cfg", overrides, base=BASE).config


def warnings(text: str, *overrides: str) -> list[str]:
    return load_text(text, "web.cfg", overrides, base=BASE).warnings


def refusal(text: str, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "web.cfg", overrides, base=BASE)
    return caught.value


def test_a_whole_file() -> None:
    config = load(
        """
name = "web1"
memory = 512
vcpus = "2"
kernel = "vmlinuz"
root = "/dev/xvda1 ro"
extra = 4
disk = ["file:a.img,xvda1,w"]
vif = ["", "bridge=br0"]
on_crash = "PRESERVE"
"""
    )
    assert config == DomainConfig(
        name="web1",
        memory=512,
        vcpus=2,
        kernel="/here/vmlinuz",
        root="/dev/xvda1 ro",
        extra="4",
        disk=(Disk("xvda1", "/here/a.img", DiskFormat.RAW),),
        vif=(Vif(), Vif(bridge="br0")),
        on_crash=Action.PRESERVE,
    )


def test_the_name_comes_from_the_file_s() -> None:
    assert load("image = 'tiny'").name == "web"
    error = refusal("image = 'tiny'\nname = '..'")
    assert (error.key, error.line) == ("name", 2)
    with pytest.raises(ConfigError, match=r"^my vm\.cfg: name must be .*, not 'my vm'$") as caught:
        load_text("image = 'tiny'", "my vm.cfg")
    assert 'write name = "web"' in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("memory = '512'", "memory", 512),
        ("memory = '2G'", "memory", 2048),
        ("memory = 512.0", "memory", 512),
        ("maxmem = ''", "maxmem", None),
        ("maxmem = None", "maxmem", None),
        ("vnc = 'yes'", "vnc", True),
        ("vnc = '0'", "vnc", False),
        ("vnc = True", "vnc", True),
        ("vncdisplay = '0x10'", "vncdisplay", 16),
        ("vnclisten = '0.0.0.0:7'", "vncdisplay", 7),
        ("vnclisten = '0.0.0.0:7'", "vnclisten", "0.0.0.0"),
        ("vfb = ['vnc=1,vncdisplay=4,vnclisten=0.0.0.0']", "vncdisplay", 4),
        ("vfb = ['type=vnc,keymap=en']", "vnc", True),
        ("usbdevice = 'tablet'", "usbdevice", ("tablet",)),
        ("usbdevice = ['Tablet', 'mouse']", "usbdevice", ("tablet", "mouse")),
        ("usbdevice = ''", "usbdevice", ()),
        ("serial = ['pty']", "serial", "pty"),
        ("bios = 'ovmf'", "firmware", Firmware.UEFI),
        ("bios = 'seabios'", "firmware", Firmware.BIOS),
        ("firmware = 'ovmf'", "firmware", Firmware.UEFI),
        ("bios = ''", "firmware", Firmware.BIOS),
        ("restart = None", "on_crash", Action.RESTART),
        ("stdvga = 1", "vga", "stdvga"),
        ("nographic = 1", "vga", "none"),
        ("kernel = '/usr/lib/xen-4.4/boot/hvmloader'", "kernel", None),
        ("kernel = ''", "kernel", None),
        ("ramdisk = '/r'", "ramdisk", "/r"),
        ("on_shutdown = 'restart'", "on_poweroff", Action.RESTART),
        ("restart = 'always'", "on_poweroff", Action.RESTART),
        ("restart = 'never'", "on_crash", Action.DESTROY),
        ("restart = 'onreboot'", "on_crash", Action.DESTROY),
        ("uuid = '6C1C0FE21F6A4B66A6C12C2A1F0A4F11'", "uuid", "6c1c0fe2-1f6a-4b66-a6c1-2c2a1f0a4f11"),
        ("disk = ()", "disk", ()),
        ("vif = ''", "vif", (Vif(),)),
        ("boot_timeout = 0", "boot_timeout", 0),
    ],
)
def test_values_as_users_write_them(line: str, key: str, expected: object) -> None:
    assert getattr(load(f"type = 'hvm'\ndisk = ['/a,,hda']\n{line}"), key) == expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("builder = 'hvm'", DomainType.HVM),
        ("builder = 'linux'", DomainType.PVH),
        ("builder = 'generic'", DomainType.PVH),
        ("type = 'HVM'", DomainType.HVM),
        ("builder = 'linux'; type = 'hvm'", DomainType.HVM),
        ("", DomainType.PVH),
    ],
)
def test_the_type(line: str, kind: DomainType) -> None:
    assert load(f"image = 'tiny'\n{line}").type is kind


def test_pv_is_refused_with_the_reason() -> None:
    error = refusal("image = 'tiny'\ntype = 'pv'")
    assert "ring 1" in error.message
    assert "pvh" in str(error.hint)


def test_xm_s_network_keys_become_the_kernel_s() -> None:
    assert load("image='tiny'; dhcp='dhcp'; extra='quiet'").extra == "ip=:127.0.255.255::::eth0:dhcp quiet"
    full = "ip='10.0.0.2'; gateway='10.0.0.1'; netmask='255.0.0.0'; hostname='h'; nfs_server='10.0.0.3'; nfs_root='/r'"
    expected = "ip=10.0.0.2:10.0.0.3:10.0.0.1:255.0.0.0:h:eth0:off nfsroot=10.0.0.3:/r"
    assert load(f"image='tiny'; {full}").extra == expected
    assert load("image='tiny'; ip='10.0.0.2'; extra='ip=dhcp'").extra == "ip=dhcp"
    assert "nfs_root needs nfs_server" in refusal("image='tiny'; nfs_root='/r'").message
    assert "no effect" in warnings("image='tiny'; hostname='h'")[0]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("memory = 'abc'", "memory: 'abc' is not an amount of memory", "512M"),
        ("memory = 0", "memory must be a number of MiB from 1 to 16777216, not 0", None),
        ("memory = '100k'", "memory: '100k' is not a whole number of MiB", None),
        ("memory = True", "memory must be a number of MiB from 1 to 16777216, not True", "memory = 512"),
        ("vcpus = 2.5", "vcpus must be a whole number from 1 to 512, not 2.5", "vcpus = 2"),
        ("vcpus = []", "vcpus must be a whole number from 1 to 512, not a list", "vcpus = 2"),
        ("vnc = 2", "vnc must be 0 or 1, not 2", "vnc = 1"),
        ("type = 'hvn'", "type must be one of pvh, hvm, not 'hvn'", "did you mean 'hvm'?"),
        ("disk = [3]", "disk must be a list of disks", 'disk = ["file:'),
        ("disk = 3", "disk must be a list of disks", 'disk = ["file:'),
        ("disk = ['/a']", "disk '/a': the device's name in the guest is missing", "write 'file:"),
        ("vif = ['x']", "vif 'x': 'x' should be a pair", "mac="),
        ("usbdevice = ['wacom']", "usbdevice must be one or a list of tablet, mouse, keyboard", "usbdevice"),
        ("usbdevice = ['host:1.2']", "usbdev: a pvh domain has neither PCI devices of the host nor USB", "hvm"),
        ("pci = ['03:00.0']", "pci: a pvh domain has neither PCI devices of the host nor USB", "hvm"),
        ("name = None", None, None),
        ("name = ['x']", "name must be 1 to 64 letters", "name = "),
        ("name = 'a b'", "name must be 1 to 64 letters, digits or any of _ . : + - and may not start with", None),
        ("name = 'ab\\n'", "name must be 1 to 64 letters", None),
        ("uuid = '1-2'", "uuid must be 32 hexadecimal digits in the groups 8-4-4-4-12, not '1-2'", None),
        ("extra = 'a' * 5000", "extra must be text of at most 4096 characters", None),
        ("builder = 'xen'", "builder must be one of hvm, linux, generic, not 'xen'", None),
        ("builder = 1", "builder must be a text in quotes", None),
        ("restart = 'x'", "restart must be one of always, onreboot, never", None),
        ("bios = 'grub'", "bios must be one of", None),
        ("vfb = ['vnc']", "vfb: 'vnc' should be a pair", None),
        ("vfb = 3", "vfb must be a list", None),
        ("maxmem = 1", "maxmem (1 MiB) must not be less than memory (256 MiB)", None),
        ("ip = 'a b'", "ip must be one word", None),
        ("stdvga = 'x'", "stdvga must be 0 or 1, not 'x'", "stdvga = 1"),
    ],
)
def test_refusals_name_key_place_and_value(line: str, message: str | None, hint: str | None) -> None:
    text = f"image = 'tiny'\n\n  {line}"
    if message is None:
        load(text)
        return
    error = refusal(text)
    assert error.message.startswith(message)
    assert (error.source, error.line, error.column) == ("web.cfg", 3, 3)
    assert error.key is not None and error.key in line
    assert (hint or "") in (error.hint or "")


def test_unknown_keys_are_reported_with_the_nearest() -> None:
    text = "image = 'tiny'\nmemmory = 3\nqwertyuiop = 1\n_private = 1\nhelper = 'x'\ndescription = helper"
    assert warnings(text) == [
        "web.cfg:2: unknown key 'memmory'; did you mean 'memory'?",
        "web.cfg:3: unknown key 'qwertyuiop'",
    ]


def test_keys_without_effect_are_reported_only_where_they_ask_for_something() -> None:
    text = "image = 'tiny'\nacpi = 1\nsdl = 0\npool = 'Pool-0'\nhap = 0\npci_permissive = 1\nvnuma = [1]"
    assert warnings(text) == [
        "web.cfg:5: `hap` has no effect in pyxen",
        "web.cfg:6: `pci_permissive` has no effect in pyxen (VFIO checks what a guest writes to a "
        "device's configuration, and can't be told not to)",
        "web.cfg:7: `vnuma` has no effect in pyxen",
    ]


def test_no_key_is_in_two_tables() -> None:
    assert not set(KEYS) & set(WITHOUT_EFFECT)
    assert not set(ALIASES) & set(WITHOUT_EFFECT)
    assert not set(ALIASES) & set(KEYS)


ALIAS_VALUES = {
    "builder": "'hvm'",
    "on_shutdown": "'preserve'",
    "restart": "'always'",
    "bios": "'ovmf'",
    "stdvga": "1",
    "nographic": "1",
    "vfb": "['vnc=1']",
    "cap": "50",
    "profile": "'windows'",
} | dict.fromkeys(("ip", "netmask", "gateway", "hostname", "interface", "dhcp", "nfs_server", "nfs_root"), "'10.0.0.1'")


@pytest.mark.parametrize("key", ALIASES)
def test_every_alias_is_taken(key: str) -> None:
    text = f"image = 'tiny'; ip = nfs_server = '10.0.0.2'\n{key} = {ALIAS_VALUES[key]}"
    assert not any("unknown key" in warning for warning in warnings(text))
    unlike = load("image = 'tiny'; ip = nfs_server = '10.0.0.2'")
    assert load(text) != unlike or key == "stdvga"


class TestOverrides:
    def test_they_beat_the_file(self) -> None:
        config = load("image = 'tiny'; memory = 64; disk = ['/a,,xvda']", "memory=2G", "disk=file:/b,xvdb,w", "vif=")
        assert config.memory == 2048
        assert [disk.target for disk in config.disk] == ["/b"]
        assert config.vif == (Vif(),)

    def test_a_list_key_given_twice_has_both(self) -> None:
        assert [disk.vdev for disk in load("image='tiny'", "disk=/a,,xvda", "disk=/b,,xvdb").disk] == ["xvda", "xvdb"]

    def test_a_list_can_be_emptied(self) -> None:
        assert load("image='tiny'; disk=['/a,,xvda']; vif=['']", "disk=", "vif=[]") == load("image='tiny'")

    def test_python_lists_and_quotes(self) -> None:
        config = load("image='tiny'", "disk=['/a,,xvda', '/b,,xvdb']", 'extra="a b"', "root='x' y 'z'", "name=5")
        assert [disk.vdev for disk in config.disk] == ["xvda", "xvdb"]
        assert (config.extra, config.root, config.name) == ("a b", "'x' y 'z'", "5")

    def test_helper_variables(self) -> None:
        text = "number = 1\nname = 'vm%d' % number\nimage = 'tiny'"
        assert load(text, "number=7").name == "vm7"
        assert warnings(text, "number=7") == []
        assert load("image='tiny'\ndescription = 'of ' + name", "name=x").description == "of x"

    def test_classic_keys(self) -> None:
        assert load("image='tiny'", "builder=hvm", "bios=ovmf").firmware is Firmware.UEFI

    def test_without_a_file(self) -> None:
        assert load_overrides_only(["image=tiny"]).config == DomainConfig(name="tiny", image="tiny")
        config = load_overrides_only(["kernel=k", "name=x"], base=BASE).config
        assert config == DomainConfig(name="x", kernel="/here/k")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["memory=5"], "the domain's name is missing"),
            (["memory"], "'memory' is no KEY=VALUE word"),
            (["=5"], "'=5' is no KEY=VALUE word"),
            (["mem ory=5"], "'mem ory=5' is no KEY=VALUE word"),
            (["image=tiny", "memory=x"], "'memory=x': memory: 'x' is not an amount of memory"),
            (["image=tiny", "memory=0"], "'memory=0': memory must be a number of MiB from 1 to 16777216, not 0"),
            (["image=tiny", "disk=['/a"], '"disk=[\'/a":1:1'),
            (["image=tiny", "maxvcpus=1", "vcpus=2"], "'maxvcpus=1': maxvcpus (1) must not be less than vcpus (2)"),
            (["name=x"], "command line: a pvh domain needs a kernel or an image"),
        ],
    )
    def test_errors_name_the_word(self, words: list[str], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load_overrides_only(words)
        assert str(caught.value).startswith(message)

    def test_unknown_words_are_reported(self) -> None:
        assert load_overrides_only(["image=tiny", "memmory=5"]).warnings == [
            "'memmory=5': unknown key 'memmory'; did you mean 'memory'?"
        ]


class TestFiles:
    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
    def test_examples(self, path: Path) -> None:
        loaded = load_file(path)
        assert path.read_text().startswith("# ")
        expected = ["hvmloader", "device_model"] if path.name == "classic-hvm.cfg" else []
        assert len(loaded.warnings) == len(expected)
        assert all(word in warning for word, warning in zip(expected, loaded.warnings, strict=True))

    def test_there_are_examples(self) -> None:
        assert len(EXAMPLES) >= 5

    def test_the_server_example_takes_a_number(self) -> None:
        config = load_file(EXAMPLES[0].with_name("server.cfg"), ["number=4"]).config
        assert (config.name, config.vif[0].mac) == ("server4", "00:16:3e:00:00:04")
        assert config.disk[0].target == "/dev/vg0/server4"

    def test_relative_paths_are_below_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.b.cfg").write_text("kernel = 'k'; disk = ['x.img,,xvda']")
        monkeypatch.chdir(tmp_path)
        config = load_file(Path("a.b.cfg")).config
        assert (config.name, config.kernel) == ("a.b", f"{tmp_path}/k")
        assert config.disk[0].target == f"{tmp_path}/x.img"

    def test_a_lost_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(ConfigError, match="the current folder is gone"):
            load_overrides_only(["name=x", "kernel=k"])

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"a = '\xff'", "{}:1: this is not text in UTF-8"),
            (b"a = 1\nb = '\xe9'", "{}:2: this is not text in UTF-8"),
            (b" <?xml version='1.0'?>", "{}: Xen-API's XML and xend's S-expressions are not read by pyxen"),
            (b"(vm (name x))", "{}: Xen-API's XML and xend's S-expressions are not read by pyxen"),
            (b"# " + b"x" * (1 << 20), "{}: this file has more than 1048576 characters"),
            (b"\x7fELF\0", "{}:1: there is a null byte here; this is not a text file"),
        ],
        ids=["latin-1", "latin-1, second line", "xml", "sxp", "large", "binary"],
    )
    def test_what_is_no_file_of_ours(self, tmp_path: Path, data: bytes, message: str) -> None:
        path = tmp_path / "f.cfg"
        path.write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            load_file(path)
        assert str(caught.value) == message.format(path)

    def test_what_can_t_be_read(self, tmp_path: Path) -> None:
        for path, reason in ((tmp_path / "x", "No such file"), (tmp_path, "Is a directory"), (Path("\0"), "null byte")):
            with pytest.raises(ConfigError, match=reason):
                load_file(path)

    def test_values_are_kept(self) -> None:
        loaded = load_text("n = 3; image = 'tiny'; memory = '1G'", "f.cfg", ["vcpus=2"])
        assert loaded.values == {"n": 3, "image": "tiny", "memory": "1G", "vcpus": 2}


def test_a_profile_is_what_the_file_does_not_say_otherwise() -> None:
    config = load('profile = "windows"\nname = "win"\nvnc = 0\ndisk = ["file:/c.img,hda,w"]\n')
    assert (config.type, config.hdtype, config.firmware) == ("hvm", "ahci", "uefi")
    assert (config.viridian, config.localtime, config.vnc, config.usbdevice) == (True, True, False, ("tablet",))
    assert [(disk.vdev, disk.devtype) for disk in config.disk] == [("hda", "disk"), ("hdd", "cdrom")]
    own = load('profile = "windows"\nname = "win"\ndisk = ["file:/drivers.iso,hdd:cdrom,r"]\n')
    assert [disk.target for disk in own.disk] == ["/drivers.iso"]
    with pytest.raises(ConfigError, match="profile must be one of windows, not 'beos'"):
        load('profile = "beos"\nname = "x"\n')


@pytest.mark.parametrize(
    ("keys", "reason"),
    [('firmware = "bios"', "a matter of UEFI"), ('hdtype = "ide"', "needs the machine")],
)
def test_secure_boot_has_its_machine(keys: str, reason: str) -> None:
    config = load('name = "x"\ntype = "hvm"\nsecure_boot = 1\n')
    assert (config.firmware, config.hdtype) == ("uefi", "ahci")
    with pytest.raises(ConfigError, match=reason):
        load(f'name = "x"\ntype = "hvm"\nsecure_boot = 1\n{keys}\n')
