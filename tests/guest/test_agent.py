"""Commands and files in a real guest, through its agent, by xm."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pexpect
import pytest

from pyxen.client import Address, Client
from tests.guest.host import Host, wait_for

FAST = "PYXEN_TEST_HOST" not in os.environ
"""Xen's console takes 16 bytes at a time, each with an event, of which there are some hundreds a second in there."""


@pytest.fixture
def web(host: Host) -> Host:
    """A host with a guest that may still be starting: the first command waits for it."""
    host.xm("create", "image=tiny", "name=web", "memory=192")
    assert host.xm("exec", "--wait", "60", "web", "uname", "-n") == "web\n"
    return host


def test_commands_and_files(web: Host) -> None:
    _streams_and_statuses(web)
    _files(web)
    _a_signal_reaches_the_command(web)
    _a_terminal(web)
    _the_sdk(web)
    _after_xends_death(web)
    _what_a_restored_guest_is_told(web)


def _streams_and_statuses(web: Host) -> None:
    done = web.try_run(
        "xm", "exec", "-e", "X=a b", "-w", "/tmp", "web", "sh", "-c", 'echo "$X $PWD"; echo no >&2; exit 7'
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "a b /tmp\n", "no\n")
    assert web.try_run("xm", "exec", "web", "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = web.try_run("xm", "exec", "web", "/no/such")
    assert (missing.returncode, missing.stdout) == (127, "")
    assert missing.stderr == "Error: cannot run '/no/such' in 'web': No such file or directory\n"
    assert web.try_run("xm", "exec", "web", "/etc/passwd").returncode == 126
    data = os.urandom(3 << 20 if FAST else 24 << 10)
    echoed = subprocess.run(
        web.argv("xm", "exec", "-i", "web", "cat"), env=web.environ, input=data, capture_output=True, check=True
    )
    assert echoed.stdout == data
    assert web.try_run("xm", "exec", "nosuch", "true").returncode == 3
    assert "host itself" in web.try_run("xm", "exec", "Domain-0", "true").stderr


def _files(web: Host) -> None:
    data = os.urandom(1 << 20 if FAST else 24 << 10)
    (web.root / "up").write_bytes(data)
    (web.root / "up").chmod(0o750)
    web.xm("cp", "up", "web:/tmp")
    assert web.xm("exec", "web", "stat", "-c", "%a %s", "/tmp/up") == f"750 {len(data)}\n"
    web.xm("cp", "web:/tmp/up", "down")
    assert (web.root / "down").read_bytes() == data
    assert web.xm("cp", "web:/proc/sys/kernel/hostname", "-") == "web\n"
    assert "No such file" in web.try_run("xm", "cp", "web:/nowhere", ".").stderr
    assert "Is a directory" in web.try_run("xm", "cp", "web:/tmp", ".").stderr
    assert not list(web.root.glob("*.part"))


def _a_signal_reaches_the_command(web: Host) -> None:
    running = web.popen("xm", "exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM
    running.communicate()
    running = web.popen("xm", "exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1234")
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.kill()
    running.communicate()
    wait_for(lambda: "sleep 1234" not in web.xm("exec", "web", "ps"), "xm's death ends its command")


def _a_terminal(web: Host) -> None:
    program, *words = web.argv("xm", "exec", "-it", "web", "sh")
    shell = pexpect.spawn(program, words, env=web.environ, encoding="utf-8", timeout=60, dimensions=(31, 99))
    shell.expect("# ")
    shell.sendline("stty size; tty")
    shell.expect(r"31 99\r\n/dev/pts/\d")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5


def _the_sdk(web: Host) -> None:
    with Client(Address(socket=web.root / "run" / "xend.sock")) as client:
        result = client.exec("web", ["sort"], stdin=b"b\na\n")
        assert (result.status, result.stdout, result.stderr) == (0, b"a\nb\n", b"")
        client.write_file("web", "/tmp/note", b"\0\xff")
        assert client.read_file("web", "/tmp/note") == b"\0\xff"


def _after_xends_death(web: Host) -> None:
    running = web.popen("xm", "exec", "web", "sleep", "4321")
    wait_for(lambda: "sleep 4321" in web.xm("exec", "web", "ps"), "it runs")
    web.kill_xend()
    _, error = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "hung up on" in error
    web.start()
    assert web.xm("exec", "web", "echo", "again") == "again\n"
    assert "sleep 4321" not in web.xm("exec", "web", "ps")


def _what_a_restored_guest_is_told(web: Host) -> None:
    """Set wrong here, its clock stands as wrong as that of a guest restored long after it was saved."""
    web.xm("exec", "web", "date", "-s", "2001-01-01 00:00:00")
    saved = web.root / "web.saved"
    web.xm("save", "web", str(saved))
    web.xm("restore", str(saved))
    told = ("exec", "--wait", "60", "web", "date", "+%s")
    wait_for(lambda: abs(int(web.xm(*told)) - time.time()) < 600, "it is told the time")
