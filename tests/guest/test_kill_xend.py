"""xend killed with SIGKILL at any point: no domain lost, no process orphaned, nothing stuck."""

from __future__ import annotations

import random
import time

import pytest

from tests.guest.host import PROMPT, Host, type_line, wait_for

TIMES = 10


def settled(host: Host) -> None:
    """What xend says and what runs must agree, and no state may be one of passage."""
    wait_for(
        lambda: all(domain["state"] in ("r-----", "-b----", "") for domain in host.domains().values()),
        "every domain is running or gone",
    )
    known = {domain["pid"] for domain in host.domains().values() if domain["domid"] is not None}
    monitors = {pid for pid, line in host.processes().items() if "qemu-system" in line.split(" ")[0]}
    assert monitors == known
    folders = {path.name for path in (host.root / "run" / "domains").iterdir()}
    assert folders == {str(domain["domid"]) for domain in host.domains().values() if domain["domid"] is not None}


def wait_gone(host: Host, name: str) -> None:
    wait_for(lambda: name not in host.domains(), f"{name} is gone")


def wait_for_id_above(host: Host, before: int) -> None:
    wait_for(lambda: (host.domains()["web"]["domid"] or 0) > before, "web is back under a new id")


def kill_during(host: Host, *words: str, after: float) -> None:
    """Run a command, kill xend while it is under way, start xend again."""
    command = host.popen(*words)
    time.sleep(after)
    host.kill_xend()
    host.start()
    command.communicate(timeout=60)


@pytest.mark.timeout(600)
def test_during_create(host: Host) -> None:
    host.xm("create", "image=tiny", "name=bystander", "memory=192")
    bystander = host.domains()["bystander"]["pid"]
    for number in range(TIMES):
        kill_during(
            host, "xm", "create", "image=tiny", f"name=d{number}", "memory=128", after=random.uniform(0.05, 0.6)
        )
        settled(host)
        assert host.domains()["bystander"]["pid"] == bystander
        # Whatever became of it, its name can be used or the domain ended.
        if f"d{number}" in host.domains():
            host.xm("destroy", f"d{number}")
        else:
            host.xm("create", "image=tiny", f"name=d{number}", "memory=128", "-p")
            host.xm("destroy", f"d{number}")
    host.xm("destroy", "bystander")


@pytest.mark.timeout(900)
def test_during_shutdown(host: Host) -> None:
    for number in range(TIMES):
        name = f"d{number}"
        host.xm("create", "image=tiny", f"name={name}", "memory=128")
        host.ready(name).close()
        kill_during(host, "xm", "shutdown", name, after=random.uniform(0.05, 0.5))
        # An order that xend had accepted is carried out; one that it hadn't can be given again.
        if name in host.domains() and host.domains()[name]["state"] != "":
            host.xm("shutdown", "-w", name, check=False)
        wait_gone(host, name)
        settled(host)


@pytest.mark.timeout(900)
def test_during_reboot(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=128")
    for _ in range(TIMES):
        host.ready("web").close()
        before = host.domains()["web"]["domid"]
        kill_during(host, "xm", "reboot", "web", after=random.uniform(0.05, 2.0))
        if host.domains()["web"]["domid"] == before:
            host.xm("reboot", "-w", "web", check=False)
        wait_for_id_above(host, before)
        settled(host)
    host.ready("web").close()
    host.xm("destroy", "web")


@pytest.mark.timeout(600)
def test_a_console_goes_on_where_it_was(host: Host) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=128")
    console = host.ready("web")
    for number in range(TIMES):
        first = number * 1000
        console.sendline(f"i={first}; while [ $i -lt {first + 300} ]; do i=$((i+1)); echo line-$i; usleep 2000; done")
        time.sleep(random.uniform(0.0, 0.5))
        host.kill_xend()
        host.start()
        # Every line, once, in order: nothing was lost or doubled while xend was away.
        for expected in range(first + 1, first + 301):
            console.expect(r"line-(\d+)\r")
            assert int(console.match.group(1)) == expected
        console.expect(PROMPT)
        assert type_line(console, f"echo still {number}") == f"still {number}"
    console.close()
    host.xm("destroy", "web")
