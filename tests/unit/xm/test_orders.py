"""Commands that change something: what they order, what they say, how they wait."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pyxen import api
from pyxen.api import Image, PowerState, Progress, Trigger
from pyxen.config.model import Disk, DiskAccess, DiskFormat, PciDevice, UsbDevice, UsbType, Vif
from pyxen.errors import PyxenError
from pyxen.xm import wait

from .conftest import Xm
from .fake import WEB, FakeClient, domain, ended

RAW = Disk(vdev="xvdb", target="/srv/a.img", format=DiskFormat.RAW, access=DiskAccess.READ)

MOUSE = UsbDevice(type=UsbType.HOST, hostbus=1, hostaddr=3)
STICK = UsbDevice(type=UsbType.DISK, target="/srv/a.img", readonly=True)


@pytest.mark.parametrize("verb", ["destroy", "pause", "unpause", "suspend", "resume", "delete"])
def test_silent_orders(xm: Xm, fake: FakeClient, verb: str) -> None:
    assert xm(verb, "web") == (0, "", "")
    assert fake.orders == [(verb, "web")]


def test_rename_and_start(xm: Xm, fake: FakeClient) -> None:
    assert xm("rename", "web", "new") == (0, "", "")
    assert xm("start", "-p", "web") == (0, "", "")
    assert fake.orders == [("rename", "web", "new"), ("start", "web", True)]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (("vcpu-set", "web", "4"), ("set_vcpus", "web", 4)),
        (("block-attach", "web", "file:/srv/a.img", "xvdb", "r"), ("attach_disk", "web", RAW)),
        (
            ("block-attach", "web", "format=raw", "vdev=xvdb,access=ro", "target=/srv/a.img"),
            ("attach_disk", "web", RAW),
        ),
        (("block-detach", "web", "xvdb"), ("detach_disk", "web", "xvdb", False)),
        (("block-detach", "--force", "web", "xvdb"), ("detach_disk", "web", "xvdb", True)),
        (("block-resize", "web", "xvdb", "2G"), ("resize_disk", "web", "xvdb", 2 << 30)),
        (("block-limit", "web", "xvdb", "--rate", "10MB/s"), ("limit_disk", "web", "xvdb", 10_000_000, None)),
        (("block-limit", "web", "xvdb", "--rate", "none", "--iops", "9"), ("limit_disk", "web", "xvdb", 0, 9)),
        (("network-limit", "web", "0", "80Mb/s"), ("limit_vif", "web", "0", 10_000_000)),
        (("cd-insert", "web", "hdc", "/srv/cd.iso"), ("change_disc", "web", "hdc", "/srv/cd.iso")),
        (("cd-eject", "web", "hdc"), ("change_disc", "web", "hdc", None)),
        (("network-attach", "web"), ("attach_vif", "web", Vif())),
        (("network-attach", "web", "bridge=br0", "rate=1MB/s"), ("attach_vif", "web", Vif(bridge="br0", rate=10**6))),
        (("network-detach", "web", "1"), ("detach_vif", "web", "1", False)),
        (("pci-attach", "web", "3:0.0"), ("attach_pci", "web", PciDevice("0000:03:00.0"))),
        (
            ("pci-attach", "-o", "seize=1", "web", "03:00.0", "0a"),
            ("attach_pci", "web", PciDevice("0000:03:00.0", vslot=10, seize=True)),
        ),
        (("pci-detach", "web", "03:00.0"), ("detach_pci", "web", "03:00.0")),
        (("pci-assignable-add", "03:00.0"), ("make_pci_assignable", "03:00.0")),
        (("pci-assignable-remove", "-r", "03:00.0"), ("give_pci_back", "03:00.0")),
        (("usb-attach", "web", "hostbus=1", "hostaddr=3"), ("attach_usb", "web", MOUSE)),
        (("usbdev-attach", "web", "hostbus=1,hostaddr=3"), ("attach_usb", "web", MOUSE)),
        (("usb-add", "web", "host:1.3"), ("attach_usb", "web", MOUSE)),
        (("usb-attach", "web", "readonly=1", "disk:/srv/a.img"), ("attach_usb", "web", STICK)),
        (("usb-del", "web", "0"), ("detach_usb", "web", "0")),
        (("debug-keys", "qe"), ("debug_keys", "qe")),
        (("network-detach", "-f", "web", "1"), ("detach_vif", "web", "1", True)),
        (("vcpu-pin", "web", "0", "0-3,^1"), ("pin_vcpus", "web", 0, "0-3,^1", None)),
        (("vcpu-pin", "web", "all", "ALL", "nodes:0"), ("pin_vcpus", "web", None, "all", "nodes:0")),
        (("vcpu-pin", "web", "1", "-", "2"), ("pin_vcpus", "web", 1, None, "2")),
        (("sched-credit", "-d", "web", "-w", "512"), ("set_credit", "web", 512, None)),
        (("io-weight", "web", "200"), ("set_io_weight", "web", 200)),
        (("sched-credit", "-d", "web", "--cap=50"), ("set_credit", "web", None, 50)),
        (("cpupool-destroy", "fast"), ("destroy_cpupool", "fast")),
        (("cpupool-cpu-add", "fast", "NODE:1"), ("add_cpus", "fast", "node:1")),
        (("cpupool-cpu-remove", "fast", "3"), ("remove_cpus", "fast", "3")),
        (("cpupool-migrate", "web", "fast"), ("set_pool", "web", "fast")),
        (("cpupool-numa-split",), ("split_cpupools",)),
        (("mem-set", "web", "128"), ("set_memory", "web", 128)),
        (("mem-set", "web", "1g"), ("set_memory", "web", 1024)),
        (("mem-set", "web", "262144k"), ("set_memory", "web", 256)),
        (("mem-max", "web", "512M"), ("set_maxmem", "web", 512)),
        (("sysrq", "web", "s"), ("sysrq", "web", "s")),
        (("trigger", "web", "nmi"), ("trigger", "web", Trigger.NMI, None)),
        (("trigger", "web", "nmi", "1"), ("trigger", "web", Trigger.NMI, 1)),
    ],
)
def test_silent_orders_with_arguments(
    xm: Xm, fake: FakeClient, words: tuple[str, ...], order: tuple[object, ...]
) -> None:
    assert xm(*words) == (0, "", "")
    assert fake.orders == [order]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("vcpu-set", "web", "0"), "0 is not in the range"),
        (("vcpu-set", "web", "two"), "not a valid integer"),
        (("block-attach", "web"), "issing argument"),
        (("block-resize", "web", "xvdb", "big"), "not an amount"),
        (("block-limit", "web", "xvdb", "--rate", "fast"), "is not a rate: write 10MB/s, 80Mb/s or none"),
        (("block-limit", "web", "xvdb"), "Neither --rate nor --iops"),
        (("vcpu-pin", "web", "both", "1"), "a VCPU's number, or all"),
        (("vcpu-pin", "web", "1"), "issing argument"),
        (("sched-credit", "-w", "512"), "No domain given"),
        (("sched-credit", "-d", "web", "-w", "0"), "0 is not in the range"),
        (("mem-set", "web", "much"), "is not an amount of memory"),
        (("mem-set", "web", "100k"), "is not a whole number of MiB"),
        (("mem-max", "web", "0"), "less than 1 MiB"),
        (("sysrq", "web", "sub"), "is not one letter or digit"),
        (("trigger", "web", "panic"), "is not one of"),
        (("dump-core", "-CR", "web"), "more than one '-CR' option"),
    ],
)
def test_orders_that_make_no_sense_are_not_given(
    xm: Xm, fake: FakeClient, words: tuple[str, ...], complaint: str
) -> None:
    done = xm(*words)
    assert done.status == 2
    assert complaint in done.err
    assert fake.orders == []


def test_pools_are_made_from_words_and_files(xm: Xm, fake: FakeClient, here: Path) -> None:
    assert xm("cpupool-create", "name=fast", "cpus=2-3").out == "cpupool fast created\n"
    (here / "slow.cfg").write_text('cpus = ["0", "2"]\nsched = "credit"\n')
    assert xm("cpupool-create", "slow.cfg").out == "cpupool slow created\n"
    assert xm("cpupool-create", "slow.cfg", "name=other", "cpus=4").out == "cpupool other created\n"
    wrong = xm("cpupool-create", "slow.cfg", "cpu=4")
    assert (wrong.status, wrong.err.splitlines()[0]) == (1, "Error: 'cpu=4': unknown key 'cpu'; did you mean 'cpus'?")
    assert xm("cpupool-create", "none.cfg").err == "Error: none.cfg: can't read it: No such file or directory\n"
    orders = [("create_cpupool", "fast", "2-3"), ("create_cpupool", "slow", "0,2"), ("create_cpupool", "other", "4")]
    assert fake.orders == orders


def test_what_a_host_can_not_do_is_said(xm: Xm) -> None:
    assert xm("vcpu-pin", "web", "0", "1") == (0, "", "Warning: one thread\n")


def test_snapshots_and_clones(xm: Xm, fake: FakeClient) -> None:
    assert xm("snapshot", "create", "web", "base") == (0, "", "")
    assert xm("snapshot", "revert", "-p", "web", "base") == (0, "", "")
    assert xm("snapshot", "rm", "web", "base", "old") == (0, "", "")
    assert xm("snapshot", "rm", "web").status == 2
    assert xm("create", "--from", "web:base", "name=four").out == "Started domain web (id=3)\n"
    assert xm("create", "-q", "-p", "--from", "web").out == ""
    for words in (["memory=64"], ["web.cfg"], ["-n"], ["name=a", "name=b"]):
        assert xm("create", "--from", "web:base", *words).status == 2
    assert xm("clone", "web", "two").out == "Started domain web (id=3)\n"
    assert xm("clone", "-q", "-m", "-p", "-s", "base", "web", "three").out == ""
    assert [order for order in fake.orders if order[0] != "snapshots"] == [
        ("create_snapshot", "web", "base"),
        ("revert", "web", "base", True),
        ("remove_snapshot", "web", "base"),
        ("remove_snapshot", "web", "old"),
        ("clone", "web", "four", "base", False, False),
        ("clone", "web", "web-1", None, True, False),
        ("clone", "web", "two", None, False, False),
        ("clone", "web", "three", "base", True, True),
    ]


def test_the_snapshots_are_listed(xm: Xm, fake: FakeClient) -> None:
    first, second = xm("snapshot", "list", "web").out.splitlines()
    assert first.split() == ["Domain", "Snapshot", "Created", "Size(MiB)", "Disks"]
    assert second.split() == ["web", "base", "1970-01-01", "00:00", "3.0", "xvda,xvdb"]
    assert json.loads(xm("snapshot", "list", "--format", "json").out)["snapshots"][0]["disks"] == ["xvda", "xvdb"]
    assert fake.orders == [("snapshots", "web"), ("snapshots", None)]


def test_save_and_restore_name_files_in_full(xm: Xm, fake: FakeClient, here: Path) -> None:
    assert xm("save", "-c", "web", "web.saved").out == ""
    assert xm("restore", "-p", "web.saved").out == ""
    assert fake.orders == [("save", "web", f"{here}/web.saved", True), ("restore", "web", f"{here}/web.saved", True)]


def test_dump_core_says_where_it_has_put_it(xm: Xm, fake: FakeClient, here: Path) -> None:
    assert xm("dump-core", "-L", "web", "my.core").out == "Dumping core of domain: web ...\n"
    assert xm("dump-core", "--crash", "web").out.endswith("\nWritten to /state/dump/web-3-1.core\n")
    assert fake.orders == [
        ("dump_core", "web", f"{here}/my.core", True, False, False),
        ("dump_core", "web", None, False, True, False),
    ]


def test_create(xm: Xm, fake: FakeClient, here: Path) -> None:
    (here / "web.cfg").write_text('image = "tiny"\nmemory = 128\nmemmory = 1\n')
    done = xm("create", "web.cfg", "memory=64", "-p")
    assert done.out == 'Using config file "./web.cfg".\nStarted domain web (id=7)\n'
    assert "Warning: " in done.err
    assert "memmory" in done.err
    assert "Warning: it is slow\n" in done.err
    assert fake.orders == [("create", "web", True, False)]


def test_create_says_nothing_or_json_when_asked(xm: Xm, here: Path) -> None:
    (here / "web.cfg").write_text('image = "tiny"\n')
    assert xm("create", "-q", "web.cfg").out == ""
    assert json.loads(xm("create", "web.cfg", "--format", "json").out)["domid"] == 7


def test_create_without_a_file(xm: Xm, fake: FakeClient) -> None:
    assert xm("create", "image=tiny", "name=a").out == "Started domain a (id=7)\n"


def test_create_searches(xm: Xm, here: Path) -> None:
    (here / "etc").mkdir()
    (here / "etc/web").write_text('image = "tiny"\n')
    assert xm("create", "web", "--path", f".:{here}/etc").out.startswith(f'Using config file "{here}/etc/web".\n')
    missing = xm("create", "nothing.cfg")
    assert missing == (1, "", "Error: Unable to open config file: nothing.cfg\nLooked in . and /etc/xen\n")


@pytest.mark.parametrize("words", [[], ["memory=5"], ["a.cfg", "b.cfg"]])
def test_create_called_wrongly(xm: Xm, fake: FakeClient, words: list[str]) -> None:
    assert xm("create", *words).status == 2
    assert fake.orders == []


def test_create_refuses_a_bad_file(xm: Xm, fake: FakeClient, here: Path) -> None:
    (here / "bad.cfg").write_text("memory = -5\n")
    done = xm("create", "bad.cfg")
    assert done.status == 1
    assert "bad.cfg:1" in done.err
    assert fake.orders == []


def test_dry_run_starts_nothing(xm: Xm, fake: FakeClient, here: Path) -> None:
    (here / "web.cfg").write_text('image = "tiny"\n')
    done = xm("create", "-n", "web.cfg", "memory=99")
    assert done.err == 'Using config file "./web.cfg".\n'
    (here / "again.cfg").write_text(done.out)
    assert json.loads(xm("create", "-n", "again.cfg", "--format", "json").out) == {
        "name": "web",
        "image": "tiny",
        "memory": 99,
    }
    assert fake.orders == []


def test_new(xm: Xm, fake: FakeClient, here: Path) -> None:
    (here / "web.cfg").write_text('image = "tiny"\n')
    assert xm("new", "web.cfg").out == 'Using config file "./web.cfg".\n'
    assert fake.orders == [("create", "web", False, True)]


def test_shutdown_waits_until_each_is_gone(xm: Xm, fake: FakeClient) -> None:
    fake.answers = [WEB, WEB, WEB, None]
    assert xm("shutdown", "-w", "web").out == "Domain web terminated\nAll domains terminated\n"
    assert fake.orders == [("shutdown", "web", "poweroff")]


def test_a_long_wait_says_what_may_be_the_matter(xm: Xm, fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_NOTE_S", 0.0)
    fake.answers = [WEB, WEB, WEB, WEB, None]
    done = xm("shutdown", "-w", "web")
    assert done.err.count("web has not reacted yet") == 1
    assert done.status == 0


@pytest.mark.parametrize(
    "last",
    [
        ended(WEB),
        msgspec.structs.replace(WEB, domid=4),
        msgspec.structs.replace(WEB, power_state=PowerState.SHUTDOWN),
    ],
)
def test_every_end_of_a_life_is_an_end(xm: Xm, fake: FakeClient, last: object) -> None:
    fake.answers = [WEB, WEB, last]  # type: ignore[list-item]
    assert xm("shutdown", "-w", "web").status == 0
    assert fake.answers == []


def test_shutdown_times_out(xm: Xm) -> None:
    done = xm("shutdown", "-w", "--timeout", "0", "web")
    assert (done.status, done.out) == (1, "")
    assert done.err == "Error: Domain 'web' has not shut down in time\nEnd it with: xm destroy web\n"


def test_shutdown_all_leaves_domain_0_and_halted_ones_alone(xm: Xm, fake: FakeClient) -> None:
    assert xm("shutdown", "-a", "-H").status == 0
    assert fake.orders == [("shutdown", WEB.uuid, "halt")]


def test_shutdown_goes_on_past_one_that_is_not_there(xm: Xm, fake: FakeClient) -> None:
    done = xm("shutdown", "nothing", "web")
    assert done.status == 1
    assert fake.orders == [("shutdown", "nothing", "poweroff"), ("shutdown", "web", "poweroff")]
    assert "1 of 2" in done.err


@pytest.mark.parametrize("args", [[], ["-a", "web"], ["-R", "-H", "web"]])
def test_shutdown_called_wrongly(xm: Xm, fake: FakeClient, args: list[str]) -> None:
    assert xm("shutdown", *args).status == 2
    assert fake.orders == []


@pytest.mark.parametrize("command", [["reboot", "-w"], ["shutdown", "-R", "-w"]])
def test_reboot_waits_for_the_next_life(xm: Xm, fake: FakeClient, command: list[str]) -> None:
    again = msgspec.structs.replace(WEB, domid=4)
    fake.answers = [WEB, WEB, ended(WEB), again]
    assert xm(*command, "web").out == "Domain web rebooted\nAll domains rebooted\n"
    assert fake.orders == [("shutdown", "web", "reboot")]


def test_reboot_that_never_comes_back(xm: Xm, fake: FakeClient) -> None:
    fake.answers = [WEB, None]
    done = xm("reboot", "-w", "web")
    assert (done.status, done.out) == (1, "Domain web destroyed for failing to reboot\n")


def test_reboot_that_stays_down(fake: FakeClient) -> None:
    down = domain("down", None)
    fake.there = [down]
    before = msgspec.structs.replace(down, domid=3)
    assert wait.until_rebooted(fake, before, None, grace_s=0) is False


def test_reboot_that_is_not_heard(fake: FakeClient) -> None:
    with pytest.raises(PyxenError, match="not rebooted in time"):
        wait.until_rebooted(fake, WEB, 0.0)


def test_image_build_and_rm(xm: Xm, fake: FakeClient) -> None:
    image = Image("tiny", "tiny", 2**20, 0.0, "6.1", "/k")
    fake.steps = [Progress("fetching", 0.1), Progress("fetching", 0.9), Progress("done", done=True, image=image)]
    done = xm("image", "build", "tiny", "-f", "-o", "a=b=c")
    assert done == (0, "Built image tiny (1.0 MiB, kernel 6.1)\n", "fetching\n")
    assert xm("image", "build", "-q", "tiny") == (0, "", "")
    assert xm("image", "build", "tiny", "-o", "a").status == 2
    assert xm("image", "rm", "tiny", "debian").status == 0
    assert fake.orders == [
        ("build", "tiny", True, {"a": "b=c"}),
        ("build", "tiny", False, {}),
        ("remove", "tiny"),
        ("remove", "debian"),
    ]


def test_config(xm: Xm, here: Path) -> None:
    (here / "good.cfg").write_text('image = "tiny"\nmemmory = 5\n')
    (here / "bad.cfg").write_text("memory = [\n")
    assert xm("config", "check", "good.cfg").out == "good.cfg: good\n"
    done = xm("config", "check", "bad.cfg", "good.cfg", "gone.cfg")
    assert (done.status, done.out) == (1, "good.cfg: good\n")
    assert "Error: bad.cfg:1:" in done.err
    assert "memory" in done.err
    assert "gone.cfg" in done.err
    assert 'name = "good"' in xm("config", "show", "good.cfg").out
    assert json.loads(xm("config", "show", "good.cfg", "memory=77", "--format", "json").out)["memory"] == 77
    assert json.loads(xm("config", "schema").out)
    assert xm("config", "keys", "memory").out.startswith("memory ")
    assert xm("config", "keys", "nope").status == 1
    assert len(json.loads(xm("config", "keys", "--format", "json").out)["keys"]) > 20


def test_migrate_says_what_it_took(xm: Xm, fake: FakeClient) -> None:
    done = api.Migrated("web", "b", 4, 2.5, 0.041, 3 << 20, 3)
    fake.steps = [api.Progress("sending the memory", 0.5), api.Progress("done", done=True, migrated=done)]
    said = xm("migrate", "-l", "--bandwidth", "10", "web", "b")
    assert said.out == "Migrated domain web to b (id=4): 2.50 s in all, down for 41 ms, 3.0 MiB in 3 rounds\n"
    assert said.err == "sending the memory\n"
    ((verb, ref, host, options),) = fake.orders
    assert (verb, ref, host, options["live"], options["bandwidth_mib"]) == ("migrate", "web", "b", True, 10)
    assert '"downtime_s": 0.041' in xm("migrate", "--format", "json", "web", "b").out
    fake.steps = [api.Progress("it would fit", done=True)]
    assert xm("migrate", "--check", "web", "b").out == "'web' would fit on b\n"


def test_a_migration_is_called_off_or_kept_without_a_host(xm: Xm, fake: FakeClient) -> None:
    xm("migrate", "--cancel", "web")
    xm("migrate", "--here", "web")
    assert fake.orders == [("cancel", "web"), ("keep", "web")]
    assert "Which host should it go to?" in xm("migrate", "web").err


def test_peers_are_shown_added_and_removed(xm: Xm, fake: FakeClient, here: Path) -> None:
    assert xm("peer", "show").out == "-----BEGIN CERTIFICATE-----\n"
    assert xm("peer", "list").out == "Name  SHA-256\nb     cc:dd\n"
    (here / "c.pem").write_text("PEM")
    assert xm("peer", "add", "c", "c.pem").out == "Trusting c, ee:ff\n"
    xm("peer", "rm", "b")
    assert fake.orders == [("add-peer", "c", "PEM"), ("remove-peer", "b")]
