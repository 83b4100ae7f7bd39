"""A whole Debian: built, logged in to, reached over the network, and there again as it was left."""

from __future__ import annotations

import pexpect
import pytest

from tests.guest.host import Host, fetch, free_port, type_line

PROMPT = "root@deb:~# "


def log_in(host: Host) -> pexpect.spawn[str]:
    console = host.console("deb", timeout=180)
    console.expect("deb login: ")
    console.sendline("root")
    console.expect("Password: ")
    console.sendline("debian")
    console.expect(PROMPT)
    # Neither colours nor bracketed paste: what comes back is what was printed.
    console.sendline("bind 'set enable-bracketed-paste off'")
    console.expect(PROMPT)
    return console


@pytest.mark.timeout(1200)
def test_a_debian_lives_on_its_own_disk(host: Host) -> None:
    host.xm("image", "build", "debian", timeout=900)
    port = free_port()
    create = ["create", "image=debian", "name=deb", "memory=512", f"vif=forward={port}:22"]
    host.xm(*create)
    assert fetch(port, timeout=180).startswith(b"SSH-2.0-OpenSSH_")
    console = log_in(host)
    assert type_line(console, "systemctl is-system-running --wait", PROMPT) == "running"
    assert "10.0.2.15/24" in type_line(console, "ip -4 -brief address", PROMPT)
    identity = type_line(console, "cat /etc/machine-id", PROMPT)
    assert len(identity) == 32
    type_line(console, "echo what was written stays >/root/note", PROMPT)
    console.sendline("poweroff")
    console.expect(r"Domain deb has ended \(poweroff\)")
    assert host.domains() == {}
    host.xm("create", "-p", *create[1:])
    host.xm("rename", "deb", "debbie")
    host.xm("destroy", "debbie")
    host.xm(*create[:2], "name=debbie", *create[3:], "extra=hostname=deb")
    host.xm("rename", "debbie", "deb")
    console = log_in(host)
    assert type_line(console, "cat /root/note", PROMPT) == "what was written stays"
    assert type_line(console, "cat /etc/machine-id", PROMPT) == identity
    console.close()
    host.xm("shutdown", "-w", "deb", timeout=180)
    assert host.domains() == {}
