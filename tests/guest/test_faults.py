"""Faults at every step of a save, a checkpoint, a restore, a snapshot and a revert of a real guest: nothing is lost.

At each step xend is killed, or held while the guest's monitor is killed or the disk is filled. Afterwards the guest
counts on in its memory and its disk is right, be it that it runs on or that it goes on from a file that is whole.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.errors import PyxenError
from pyxen.xend import saved
from pyxen.xend.steps import BUILD, CHECKPOINT, REVERT, SAVE, SNAPSHOT
from tests.guest.counting import UNBROKEN, ask, counted, counts_on, start_counting
from tests.guest.forked import IN_TEST_HOST
from tests.guest.host import wait_for
from tests.guest.small import SmallHost

_XEND, _MONITOR, _DISK = "xend killed", "monitor killed", "disk full"
_FAULTS = (_XEND, _MONITOR, _DISK)


class Trial:
    """The guest "web" on a host whose disk can be filled, with a saved state and a snapshot of it."""

    def __init__(self, host: SmallHost) -> None:
        self.host = host
        self.file = host.root / "web.saved"
        self.digest = start_counting(host, 1, "on_crash=destroy")
        self.least = counted(host)
        host.xm("snapshot", "create", "web", "base")
        host.xm("save", "-c", "web", str(self.file))

    def go(self, operation: str, step: str, fault: str) -> str:
        """Have an operation meet with a fault; what became of the guest, which counts on."""
        words = {
            "save": ("save", "web", str(self.file)),
            "checkpoint": ("save", "-c", "web", str(self.file)),
            "restore": ("restore", str(self.file)),
            "snapshot": ("snapshot", "create", "web", "new"),
            "revert": ("snapshot", "revert", "web", "base"),
        }[operation]
        if operation == "restore":
            self.host.xm("save", "web", str(self.file))
        self._break(words, step, fault)
        self._settle()
        fate = "runs"
        if "web" not in self.host.domains():
            # A dead monitor's guest is gone; what was being restored or reverted was to come from a file in any case.
            assert operation in ("save", "restore", "revert") or fault == _MONITOR, "lost"
            again = words if operation == "revert" else ("restore", str(self.file))
            fate = f"goes on by: xm {' '.join(again).replace(str(self.file), 'FILE')}"
            self.host.xm(*again)
        assert self._is_whole()
        self.host.try_run("xm", "snapshot", "rm", "web", "new")
        assert self._names() == ["base"]
        counts_on(self.host, self.least)
        assert ask(self.host, UNBROKEN) == "unbroken"
        return fate

    def _break(self, words: tuple[str, ...], step: str, fault: str) -> None:
        self.host.start_with({"PYXEN_FAULT": f"{step}:{'kill' if fault == _XEND else 'stop'}"})
        pid = self.host.pid
        command = self.host.popen("xm", *words)
        if fault == _XEND:
            wait_for(lambda: self.host.dead, f"xend dies at {step}")
            self.host.start()
        else:
            wait_for(lambda: _stands(pid, command), f"xend stands still at {step}")
            if fault == _DISK:
                self.host.fill()
            else:
                self._kill_monitors()
            os.kill(pid, signal.SIGCONT)
        _, complaint = command.communicate(timeout=100)
        assert "Traceback" not in complaint
        if fault == _DISK:
            self.host.make_room()

    def _kill_monitors(self) -> None:
        for pid, line in self.host.processes().items():
            if "qemu-system" in line.split(" ")[0] or "/monitor " in line:
                os.kill(pid, signal.SIGKILL)

    def _settle(self) -> None:
        def settled() -> bool:
            web = self.host.domains().get("web")
            return web is None or (web["power_state"] == "running" and "p" not in web["state"])

        wait_for(settled, "it runs or is gone")
        wait_for(lambda: not list(self.host.root.glob("**/.*.part")), "no half of anything is left")

    def _is_whole(self) -> bool:
        try:
            saved.read_state(self.file, saved.read_head(self.file)[1], lambda _piece: None)
        except PyxenError:
            return False
        return True

    def _names(self) -> list[str]:
        return [path.name for path in (self.host.root / "state" / "snapshots").glob("*/*")]


@pytest.fixture(scope="module")
def trial(tiny: Path) -> Iterator[Trial]:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    host = SmallHost(600)
    try:
        host.start()
        yield Trial(host)
    finally:
        leftovers = host.stop()
    assert not leftovers, f"left behind: {leftovers}"


@pytest.mark.timeout(5400 if IN_TEST_HOST else 900)
@pytest.mark.parametrize(
    ("operation", "steps"),
    [("save", SAVE), ("checkpoint", CHECKPOINT), ("restore", BUILD), ("snapshot", SNAPSHOT), ("revert", REVERT)],
)
def test_nothing_is_lost(trial: Trial, operation: str, steps: tuple[str, ...]) -> None:
    for step in steps:
        for fault in _FAULTS:
            fate = trial.go(operation, step, fault)
            print(f"{operation:10} {step:16} {fault:15} {fate}", flush=True)
    check = "umount /data && mount /dev/xvda /data && sha256sum < /data/random"
    assert ask(trial.host, check) == trial.digest
    assert ask(trial.host, "sha256sum < /tmp/random") == trial.digest


def _stands(pid: int, command: subprocess.Popen[str]) -> bool:
    """Has xend been stopped, before ``command`` ended?"""
    assert command.poll() is None, command.communicate()
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
