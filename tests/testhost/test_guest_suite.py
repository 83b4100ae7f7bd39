"""The tests of tests/guest, written for any engine, on the Xen engine: xm and its promises are the same there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyxen.image.kernel import unpack
from tests.guest.host import CACHE, built_image
from tests.testhost import run

_CHOSEN = "login or coredump or managed or rename_restart or maxmem"
"""Each of them takes most of a minute there."""
_CYCLES = os.environ.get("PYXEN_CYCLES", "2")
_LIMIT_S = 1800 + 60 * int(_CYCLES)
_FAULTS_IN = ["save", "checkpoint", "restore", "snapshot", "revert"] if "PYXEN_FAULTS" in os.environ else ["save"]


def image_files() -> dict[str, Path]:
    """The image tiny, at the same place in the test host as here, with its kernel unpacked and nothing else."""
    vmlinux = unpack(Path(built_image("tiny").kernel), CACHE / "kernels").vmlinux
    folder = CACHE / "images" / "tiny"
    files = [path for path in folder.rglob("*") if path.is_file()] + [vmlinux, vmlinux.with_suffix(".json")]
    return {str(path): path for path in files}


def check(which: str, *modules: str, **environ: str) -> None:
    """Run those tests of modules of tests/guest."""
    words = [
        "-v",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        f"--timeout={_LIMIT_S}",
        *(f"tests/guest/{module}.py" for module in modules),
        "-k",
        which,
    ]
    done = run(
        ["python", "-m", "pytest", *words],
        files=image_files(),
        environ={"PYXEN_TEST_CACHE": str(CACHE), "PYXEN_TEST_HOST": "1", **environ},
        live=True,
        timeout_s=_LIMIT_S,
    )
    assert done.status == 0, f"{done.output}\n{done.console}"


def test_lives_are_the_same() -> None:
    check(_CHOSEN, "test_lifecycle")


@pytest.mark.timeout(_LIMIT_S + 100)
@pytest.mark.parametrize("which", ["to_and_fro", "called_off", "killed_xend"])
def test_migration_is_the_same(which: str) -> None:
    """There and back, with a disk; called off; and with a xend that dies when it is not certain who has the domain."""
    check(which, "test_migration", PYXEN_CYCLES=_CYCLES, PYXEN_FAULTS=os.environ.get("PYXEN_FAULTS", "given"))


@pytest.mark.timeout(_LIMIT_S + 100)
def test_saving_is_the_same() -> None:
    check("goes_on", "test_saving", PYXEN_CYCLES=_CYCLES)


@pytest.mark.timeout(_LIMIT_S + 100)
@pytest.mark.parametrize("operation", _FAULTS_IN)
def test_nothing_is_lost_either(operation: str) -> None:
    """When xend or the domain's process is killed, or the disk is full, at any step."""
    check(f"nothing_is_lost and {operation}", "test_faults")


@pytest.mark.timeout(_LIMIT_S + 100)
def test_snapshots_and_clones_are_the_same() -> None:
    check("goes_back", "test_snapshots")


@pytest.mark.timeout(_LIMIT_S + 100)
def test_devices_and_the_agent_are_the_same() -> None:
    check("come_and_go or commands", "test_devices", "test_agent")
