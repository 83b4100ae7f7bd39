"""``xm console`` and ``create -c`` as a user has them: on a terminal, and in a script."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.unit.client.console_stub import ConsoleStub, wait_until

XM = [sys.executable, "-m", "pyxen.xm"]


@pytest.fixture
def xend(tmp_path: Path) -> Iterator[ConsoleStub]:
    with ConsoleStub(tmp_path / "xend.sock") as stub:
        yield stub


def environ(xend: ConsoleStub) -> dict[str, str]:
    return os.environ | {"XM_SERVER": f"unix://{xend.path}"}


def on_terminal(xend: ConsoleStub, *args: str) -> pexpect.spawn:
    return pexpect.spawn(XM[0], [*XM[1:], *args], env=environ(xend), timeout=30)


def piped(xend: ConsoleStub, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*XM, *args], input=stdin, env=environ(xend), capture_output=True, timeout=60, cwd=xend.path.parent, check=False
    )


def local_modes(child: pexpect.spawn) -> int:
    """The terminal's line editing, echo and signal keys."""
    found: int = termios.tcgetattr(child.child_fd)[3]
    return found & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_a_terminal_gives_every_key_but_one_to_the_guest(xend: ConsoleStub) -> None:
    xend.output += b"tiny:~# "
    child = on_terminal(xend, "console", "web")
    before = local_modes(child)
    child.expect_exact("Connected to web; Ctrl-] leaves")
    child.expect_exact("tiny:~# ")
    assert local_modes(child) == 0
    child.send("ls\r\x03\x1a\xc3\xa9".encode("latin-1"))
    wait_until(lambda: bytes(xend.typed) == b"ls\r\x03\x1a\xc3\xa9")
    child.send(b"tail\x1dnever sent")
    child.expect_exact("Left web")
    assert local_modes(child) == before
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    wait_until(lambda: xend.typed.endswith(b"tail"))


def test_the_terminal_is_restored_when_the_domain_ends(xend: ConsoleStub) -> None:
    child = on_terminal(xend, "console", "web")
    before = local_modes(child)
    child.expect_exact("Connected")
    wait_until(lambda: local_modes(child) == 0)
    xend.output += b"Power down.\r\n"
    xend.end("poweroff")
    child.expect_exact("Power down.")
    child.expect_exact("Domain web has ended (poweroff)")
    assert local_modes(child) == before
    child.close()


def test_the_terminal_is_restored_by_a_signal(xend: ConsoleStub) -> None:
    child = on_terminal(xend, "console", "web")
    before = local_modes(child)
    child.expect_exact("Connected")
    wait_until(lambda: local_modes(child) == 0)
    child.kill(15)
    wait_until(lambda: local_modes(child) == before)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 143


def test_a_script_types_its_input(xend: ConsoleStub) -> None:
    xend.on_typed = {b"uname\n": b"uname\r\nLinux\r\n"}
    xend.ends_after = b"Linux\r\n"
    done = piped(xend, "console", "--drain", "60", "web", stdin=b"uname\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"uname\r\nLinux\r\n", b"")


def test_a_script_leaves_when_the_guest_is_quiet(xend: ConsoleStub) -> None:
    assert piped(xend, "console", "--drain", "0.1", "web", stdin=b"typed").returncode == 0
    wait_until(lambda: xend.typed == b"typed")
    assert xend.ended is None


def test_a_script_hears_the_end_of_the_domain(xend: ConsoleStub) -> None:
    xend.output += b"so long\r\n"
    xend.ended = "poweroff"
    process = subprocess.Popen(
        [*XM, "console", "web"], env=environ(xend), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    # Its input stays open: only the domain's end can end it.
    assert process.stdout.read() == b"so long\r\n"
    assert process.wait(30) == 0
    process.stdin.close()
    process.stdout.close()


def test_create_hears_the_first_word(xend: ConsoleStub) -> None:
    (xend.path.parent / "web.cfg").write_text('image = "tiny"\n')
    xend.ends_after = b"booted\r\n"
    done = piped(xend, "create", "-c", "web.cfg")
    assert xend.orders == ["create paused", "unpause"]
    assert done.stdout == b'Using config file "./web.cfg".\nStarted domain web (id=3)\nbooted\r\n'


def test_start_paused_leaves_it_paused(xend: ConsoleStub) -> None:
    xend.ended = "destroyed"
    assert piped(xend, "start", "-p", "-c", "web").returncode == 0
    assert xend.orders == ["start paused"]


def test_a_console_that_is_refused_does_not_leave_the_domain_paused(xend: ConsoleStub) -> None:
    assert xend.domain is not None
    xend.domain.domid = None
    done = piped(xend, "start", "-c", "web")
    assert done.returncode == 1
    assert xend.orders == ["start paused", "unpause"]


def test_errors_are_plain(xend: ConsoleStub) -> None:
    xend.domain = None
    done = piped(xend, "console", "web")
    assert (done.returncode, done.stderr) == (3, b"Error: Domain 'web' does not exist.\n")
