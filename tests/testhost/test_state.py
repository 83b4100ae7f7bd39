"""Saving and restoring a domain of the Xen engine: a guest that works on its disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.testhost import run

_CYCLES = int(os.environ.get("PYXEN_SAVE_CYCLES", "1"))
_LIMIT_S = 900 + 60 * _CYCLES


@pytest.mark.timeout(_LIMIT_S + 100)
def test_a_guest_goes_on_from_where_it_was_saved(files: dict[str, Path]) -> None:
    done = run(["python", "-m", "tests.testhost.saved", str(_CYCLES)], files=files, timeout_s=_LIMIT_S)
    assert done.status == 0, f"{done.output}\n{done.console}"
    found = json.loads(done.output[done.output.index('{"rounds"') :])
    rounds = found["rounds"]
    assert list(rounds) == ["first", "paused", *(f"cycle{n}" for n in range(_CYCLES)), "goes-on", "again"]
    uptime = 0
    for word, told in rounds.items():
        assert told["disk"] == told["memory"] == rounds["first"]["memory"], rounds
        assert told["host"] == word, "what the guest has written is in the host's file"
        assert told["cpus"] == "0-1", rounds
        before, after = map(int, told["count"].split())
        assert after > before, "a program that counts goes on"
        assert abs(int(told["date"])) < 300, "the time of day is the host's"
        assert uptime <= int(told["uptime"]), "its clock never goes back"
        uptime = int(told["uptime"]) if word != "goes-on" else uptime
        assert told["results"] == "0", rounds
        assert not told["complaints"], told["complaints"]
    assert found["domid"] == _CYCLES + 2, "each one is a new domain"
    assert found["log"].count("domain restored") == _CYCLES + 1
