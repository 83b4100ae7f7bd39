"""A xend of a test's own, used as a person would: through the real ``xend`` and ``xm`` commands."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pexpect

from pyxen import api
from tests.guest import forked

BIN = Path(sys.executable).parent
PROMPT = r"[\w-]+:~# "
CACHE = Path(os.environ.get("PYXEN_TEST_CACHE", Path(__file__).resolve().parents[2] / "build" / "guest-cache"))
"""Images built once for all runs in this checkout."""


def built_image(name: str) -> api.Image:
    """An image, built from Debian's packages unless it is there; one of the runs in this checkout at a time builds."""
    from pyxen.image.store import ImageStore

    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return ImageStore(CACHE / "images", CACHE / "kernels").build(name, {}, force=False, progress=lambda step: None)


class Host:
    """One root with its xend."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: that is closed to the users that domains run as, and too long for a socket's path.
        self.root = Path(tempfile.mkdtemp(prefix="pyxen-", dir="/tmp"))
        self.root.chmod(0o711)
        self.environ = {**os.environ, "PYXEN_ROOT": str(self.root)}
        self.environ.pop("XM_SERVER", None)
        self._started: list[subprocess.Popen[str]] = []
        self.make_folders()

    def make_folders(self) -> None:
        """The state's folder, with the images built before in it."""
        (self.root / "state").mkdir(mode=0o711)
        for name in ("images", "kernels"):
            (CACHE / name).mkdir(parents=True, exist_ok=True)
            (self.root / "state" / name).symlink_to(CACHE / name)

    def argv(self, *words: str) -> list[str]:
        """What is run for ``xm …`` or ``xend …``."""
        return [str(BIN / words[0]), *words[1:]]

    def start(self) -> None:
        self.run("xend", "start")

    def start_with(self, environ: Mapping[str, str]) -> None:
        """Start xend, again if it runs, with these variables set for it alone."""
        self.try_run("xend", "stop")
        before = self.environ
        self.environ = {**before, **environ}
        try:
            self.start()
        finally:
            self.environ = before

    @property
    def dead(self) -> bool:
        """Is no xend there?"""
        return self.try_run("xend", "status").returncode == 3

    def run(self, *words: str, check: bool = True, timeout: float = 120, stdin: str | None = None) -> str:
        """A command's standard output; fails with both outputs if it does."""
        done = self.try_run(*words, timeout=timeout, stdin=stdin)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def try_run(self, *words: str, timeout: float = 120, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*words)
        return subprocess.run(
            argv,
            preexec_fn=forked.program(argv, self.environ),
            env=self.environ,
            cwd=self.root,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def xm(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        return self.run("xm", *words, check=check, timeout=timeout)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """A command that runs beside the test, and no longer than the host is there."""
        argv = self.argv(*words)
        process = subprocess.Popen(
            argv,
            preexec_fn=forked.program(argv, self.environ),
            env=self.environ,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def domains(self) -> dict[str, dict[str, Any]]:
        """Domains by name, without Domain-0."""
        listed = json.loads(self.xm("list", "--format", "json"))["domains"]
        return {domain["name"]: domain for domain in listed if domain["domid"] != 0}

    def console(self, name: str, timeout: float = 60) -> pexpect.spawn[str]:
        """``xm console`` on a terminal of its own."""
        argv = self.argv("xm", "console", name)
        return pexpect.spawn(
            argv[0],
            argv[1:],
            preexec_fn=forked.program(argv, self.environ),
            env=self.environ,
            encoding="utf-8",
            codec_errors="replace",
            timeout=timeout,
            echo=False,
        )

    def ready(self, name: str, timeout: float = 90) -> pexpect.spawn[str]:
        """The console, at a prompt."""
        console = self.console(name, timeout)
        console.expect(PROMPT)
        return console

    @property
    def pid(self) -> int:
        return int((self.root / "run" / "xend.pid").read_text())

    def kill_xend(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: self.dead, "xend's lock is free")

    def processes(self) -> dict[int, str]:
        """Every process that names this root in its arguments: xend and the domains."""
        return processes_of(str(self.root))

    def stop(self) -> list[str]:
        """End everything; what was left that shouldn't have been. Says what xend has logged, for a test that failed."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for name in ("xend.log", "xend.err"):
            with contextlib.suppress(OSError):
                print((self.root / "state" / name).read_text()[-60_000:])
        for name in self._names():
            self.try_run("xm", "destroy", name)
        self.try_run("xend", "stop")
        leftovers = [f"process {pid}: {line[:200]}" for pid, line in self.processes().items()]
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        leftovers += [f"folder {path}" for path in self.root.glob("run/**/domains/*")]
        shutil.rmtree(self.root, ignore_errors=True)
        return leftovers

    def _names(self) -> list[str]:
        try:
            return [name for name, domain in self.domains().items() if domain["domid"] is not None]
        except (AssertionError, ValueError):
            return []


def processes_of(root: str) -> dict[int, str]:
    """Command lines that contain ``root``, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if root in line:
            found[int(entry.name)] = line
    return found


def wait_for(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Return when ``condition`` holds; fail with ``what`` if it doesn't in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.05)


def type_line(console: pexpect.spawn[str], line: str, prompt: str = PROMPT) -> str:
    """Type a command at the prompt; what it printed, without its echo."""
    console.sendline(line)
    console.expect(prompt)
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(console.before)).replace("\r", "")
    return text.split("\n", 1)[1].strip() if "\n" in text else text.strip()


def free_port() -> int:
    """A TCP port of loopback that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def fetch(port: int, timeout: float = 60) -> bytes:
    """The first thing that comes from a forwarded port; tried again while there is nobody behind it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if data := connection.recv(4096):
                return data
        time.sleep(0.1)
    raise AssertionError(f"nothing came from port {port} within {timeout} s")
