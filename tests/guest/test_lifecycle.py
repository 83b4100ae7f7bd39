"""A domain's life with a real kernel, through xm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pexpect

from tests.guest.host import PROMPT, Host, type_line, wait_for


def make_disk(path: Path, mib: int = 32) -> Path:
    """An ext4 image; its journal and inode tables are small, since the guest is slow."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(path)], check=True)
    return path


def test_login_write_reboot_and_find_the_data_again(host: Host) -> None:
    disk = make_disk(host.root / "data.img")
    config = host.root / "web.cfg"
    config.write_text(
        f'name = "web"\nimage = "tiny"\nmemory = 192\nextra = "tiny.login=1"\ndisk = ["file:{disk},xvda,w"]\n'
    )
    out = host.xm("create", str(config))
    assert out.splitlines()[-1] == "Started domain web (id=1)"
    console = host.console("web")
    console.expect("login: ")
    console.sendline("root")
    console.expect("Password: ")
    console.sendline("tiny")
    console.expect(PROMPT)
    type_line(console, "mkdir -p /data && mount /dev/xvda /data")
    type_line(console, "head -c 1000000 /dev/urandom > /data/random && sync")
    digest = type_line(console, "sha256sum < /data/random")
    assert len(digest.split()[0]) == 64
    console.sendline("reboot")
    console.expect("Domain web has ended \\(reboot\\)")
    wait_for(lambda: host.domains()["web"]["domid"] == 2, "the domain is back under a new id")
    console = host.console("web")
    console.expect("login: ")
    console.sendline("root")
    console.expect("Password: ")
    console.sendline("tiny")
    console.expect(PROMPT)
    assert host.domains()["web"]["restart_count"] == 1
    type_line(console, "mkdir -p /data && mount /dev/xvda /data")
    assert type_line(console, "sha256sum < /data/random") == digest
    host.xm("shutdown", "-w", "web")
    assert "web" not in host.domains()


def test_pause_stops_the_guest_and_unpause_lets_it_go_on(host: Host) -> None:
    host.xm("create", "-p", "image=tiny", "name=web", "memory=192")
    assert host.domains()["web"]["state"] == "--p---"
    host.xm("unpause", "web")
    host.ready("web").close()
    host.xm("pause", "web")
    assert host.domains()["web"]["state"] == "--p---"
    refused = host.try_run("xm", "shutdown", "web")
    assert refused.returncode == 1
    assert "is paused" in refused.stderr
    host.xm("unpause", "web")
    host.xm("destroy", "web")
    assert host.domains() == {}


def test_a_crash_is_noticed_and_preserved(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192", "on_crash=preserve")
    console = host.ready("web")
    console.sendline("echo c > /proc/sysrq-trigger")
    wait_for(lambda: host.domains()["web"]["state"] == "----c-", "the crash is seen")
    assert host.domains()["web"]["shutdown_reason"] == "crash"
    host.xm("destroy", "web")


def test_a_crash_with_coredump_destroy_leaves_an_elf_core(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192", "on_crash=coredump-destroy")
    console = host.ready("web")
    console.sendline("echo c > /proc/sysrq-trigger")
    wait_for(lambda: host.domains() == {}, "the domain is destroyed")
    (core,) = (host.root / "state" / "dump").iterdir()
    with core.open("rb") as file:
        assert file.read(4) == b"\x7fELF"


def test_a_managed_domain_stays_when_it_stops(host: Host) -> None:
    host.xm("new", "image=tiny", "name=web", "memory=192")
    assert host.domains()["web"]["domid"] is None
    host.xm("start", "web")
    host.ready("web").close()
    host.xm("shutdown", "-w", "web")
    assert host.domains()["web"]["power_state"] == "halted"
    host.run("xend", "restart")
    assert "web" in host.domains()
    host.xm("delete", "web")
    assert host.domains() == {}


def test_rename_restart_keeps_the_old_one_under_another_name(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192", "on_reboot=rename-restart")
    console = host.ready("web")
    console.sendline("reboot")
    wait_for(lambda: host.domains().get("web", {}).get("domid") == 2, "a new domain in its place")
    (kept,) = [name for name in host.domains() if name != "web"]
    assert kept == f"Domain-{host.domains()[kept]['uuid']}"
    host.xm("destroy", kept)
    host.xm("destroy", "web")


def test_xm_reboot_brings_it_back_under_a_new_id(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192")
    for domid in (2, 3):
        host.ready("web").close()
        host.xm("reboot", "-w", "web")
        assert host.domains()["web"]["domid"] == domid
    host.xm("destroy", "web")


def test_a_guest_that_is_still_booting_hears_the_shutdown_later(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192")
    host.xm("shutdown", "-w", "web")
    assert host.domains() == {}


def test_maxmem_is_held_by_a_balloon_from_the_start(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192", "maxmem=384")
    console = host.ready("web")
    wait_for(lambda: 120 < free_mib(console) < 192, "the balloon has grown to what is above 192 MiB")
    host.xm("destroy", "web")


def free_mib(console: pexpect.spawn[str]) -> int:
    return int(type_line(console, "free -m | awk '/Mem:/ { print $4 }'"))
