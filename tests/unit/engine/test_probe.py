"""The KVM probe: its verdicts, its bound, and how long a verdict is kept."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from pyxen.engine import probe
from pyxen.engine.probe import Verdict, kvm_verdict, run_probe

HANG = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_guest_that_never_returns_is_cut_short() -> None:
    verdict = run_probe(HANG, bound_s=0.2)
    assert not verdict.usable and "0.2 s" in verdict.reason


def test_a_guest_that_uses_too_much_of_the_cpu_is_cut_short() -> None:
    code = "import signal; from pyxen.engine import probe; probe._GUEST_CPU_S = 0.1\n"
    code += "def spin():\n while True: pass\nprobe.probe = spin; probe.main()"
    verdict = run_probe([sys.executable, "-c", code])
    assert not verdict.usable and "a few instructions" in verdict.reason


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import os; os.abort()", "died with status -6"),
        ("print('{}')", "died with status 0"),
        ('print(\'{"usable": true, "reason": "ran"}\')', "ran"),
    ],
)
def test_whatever_the_child_says(code: str, part: str) -> None:
    assert part in run_probe([sys.executable, "-c", code], bound_s=30).reason


def test_a_missing_device(tmp_path: Path) -> None:
    verdict = kvm_verdict(tmp_path, tmp_path / "kvm")
    assert not verdict.usable and verdict.hint is not None and "modprobe" in verdict.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_kvm(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    assert "refused to set up a guest" in probe.probe(device).reason


def test_a_guest_that_lost_its_cpu_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    found: list[Verdict | float] = [2.9e6, 1.6e6, Verdict(True, "it ran")]

    def try_once(kvm: int, _stack: object) -> Verdict | float:
        os.close(kvm)
        return found.pop(0)

    monkeypatch.setattr(probe, "_probe", try_once)
    assert probe.probe(device).usable
    found[:] = [2.9e6] * 10
    assert "emulates guests instead of running them: 2.9 million" in probe.probe(device).reason
    assert len(found) == 5
    found[:] = [0.5e6] * 10
    assert not probe.probe(device).usable
    assert len(found) == 9, "one that emulates is not tried again"


def test_a_verdict_is_kept_until_the_device_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "kvm"
    device.touch()
    runs: list[int] = []

    def run() -> Verdict:
        runs.append(1)
        return Verdict(True, f"run {len(runs)}")

    monkeypatch.setattr(probe, "run_probe", run)
    assert kvm_verdict(tmp_path, device) == kvm_verdict(tmp_path, device) == Verdict(True, "run 1")
    os.utime(device, (1, 1))
    assert kvm_verdict(tmp_path, device).reason == "run 2"
    (tmp_path / "kvm.json").write_text('{"key": 1}')
    assert kvm_verdict(tmp_path, device).reason == "run 3"
    known = json.loads((tmp_path / "kvm.json").read_text())
    known["key"][0] = "another boot"
    (tmp_path / "kvm.json").write_text(json.dumps(known))
    assert kvm_verdict(tmp_path, device).reason == "run 4"


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="this machine has no /dev/kvm to probe")
def test_this_machine_gets_a_verdict_and_the_test_guest_itself_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the instructions that some KVMs lack, the same guest must run anywhere: it reaches its OUT and HLT."""
    assert run_probe().reason
    monkeypatch.setattr(probe, "_EXCHANGE", b"")
    monkeypatch.setattr(probe, "_SAVE", b"")
    monkeypatch.setattr(probe, "_LOOP", b"")
    assert probe.probe() == Verdict(True, "its test guest ran")
    monkeypatch.setattr(probe, "_END", bytes.fromhex("b001e6f4f4"))
    assert "wrong result" in probe.probe().reason
    monkeypatch.setattr(probe, "_END", bytes.fromhex("0f0b"))  # ud2, and no table of interrupts to go by
    assert not probe.probe().usable
