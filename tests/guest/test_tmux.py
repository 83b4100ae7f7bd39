"""``xm console`` in a terminal that people have: tmux."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.host import BIN, Host, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")


class Tmux:
    """A tmux server of its own with one shell in it."""

    def __init__(self, host: Host) -> None:
        self._socket = str(host.root / "tmux")
        environ = {**host.environ, "PATH": f"{BIN}:{host.environ['PATH']}", "PS1": "shell> ", "HISTFILE": ""}
        shell = ["sh", "-i"]
        start = ["new-session", "-d", "-x", "80", "-y", "24", *shell]
        subprocess.run(["tmux", "-f", "/dev/null", "-S", self._socket, *start], env=environ, cwd=host.root, check=True)

    def run(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-S", self._socket, *words], capture_output=True, text=True, check=True)
        return done.stdout

    def type(self, line: str) -> None:
        self.run("send-keys", "-l", line)
        self.run("send-keys", "Enter")

    def expect(self, pattern: str, timeout: float = 60) -> None:
        """Wait until the screen matches; fail with what is on it."""
        try:
            wait_for(lambda: re.search(pattern, self.screen(), re.MULTILINE), f"{pattern!r} on the screen", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen()}") from None

    def clear(self) -> None:
        """Wait for the shell, and leave nothing but its prompt."""
        self.type("clear")
        self.expect(r"\Ashell>\s*\Z")

    def screen(self) -> str:
        return self.run("capture-pane", "-p", "-J")

    def child(self) -> int:
        """The process that the shell has started."""
        shell = self.run("list-panes", "-F", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text())

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def tmux(host: Host) -> Iterator[Tmux]:
    tmux = Tmux(host)
    try:
        yield tmux
    finally:
        tmux.close()


def test_a_console_comes_and_goes_and_leaves_the_terminal_as_it_was(host: Host, tmux: Tmux) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192")
    host.ready("web").close()
    tmux.expect("^shell> ")
    tmux.type("stty -g > before")
    tmux.type("xm console web")
    tmux.expect("^web:~# ")
    tmux.type("echo $((6 * 7)) is the answer")
    tmux.expect("^42 is the answer")
    for width, height in ((40, 10), (120, 40), (80, 24)):
        tmux.run("resize-window", "-x", str(width), "-y", str(height))
        tmux.type(f"echo $(({width} * {height})) characters")
        tmux.expect(f"^{width * height} characters")
    # Ctrl-C is the guest's, not xm's.
    tmux.type("echo $((6 * 9)) seconds; sleep 54")
    tmux.expect("^54 seconds")
    tmux.run("send-keys", "C-c")
    tmux.expect(r"^web:~#\s*\Z")  # an interrupt throws away what was typed before it is seen
    tmux.type("echo still $((50 + 5))")
    tmux.expect("^still 55")
    tmux.run("send-keys", "C-]")
    tmux.expect(r"^Left web\nshell>\s*\Z")
    tmux.type("stty -g > after; echo $((3 + 4)) in the shell again")
    tmux.expect("^7 in the shell again")
    assert (host.root / "after").read_text() == (host.root / "before").read_text()
    tmux.clear()
    tmux.type("stty -a | tr ' ;' '\\n\\n' | grep -x -e echo -e icanon -e isig -e opost | sort | xargs")
    tmux.expect("^echo icanon isig opost$")


def test_the_terminal_is_sane_too_when_the_domain_or_xm_ends(host: Host, tmux: Tmux) -> None:
    host.xm("create", "image=tiny", "name=web", "memory=192")
    host.ready("web").close()
    tmux.expect("^shell> ")
    tmux.type("stty -g > before")
    for ending, leave in (("kill", signal.SIGTERM), ("hang up", signal.SIGHUP), ("poweroff", None)):
        tmux.clear()
        tmux.type("xm console web; stty -g > after; echo $((3 + 4)) in the shell again")
        tmux.expect("^web:~# ")
        if leave:
            os.kill(tmux.child(), leave)
        else:
            tmux.type("poweroff")
        tmux.expect("^7 in the shell again")
        assert (host.root / "after").read_text() == (host.root / "before").read_text(), ending
    assert host.domains() == {}
