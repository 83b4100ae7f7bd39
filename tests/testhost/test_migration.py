"""Migration of domains of the Xen engine: the tests of tests/guest, between two xends in one test host."""

from __future__ import annotations

import os

import pytest

from tests.guest.host import CACHE
from tests.testhost import run
from tests.testhost.test_guest_suite import image_files

_LIMIT_S = 1800


@pytest.mark.timeout(_LIMIT_S + 100)
@pytest.mark.parametrize("which", ["to_and_fro", "called_off", "killed_xend"])
def test_domains_of_the_xen_engine_migrate_as_others_do(which: str) -> None:
    """There and back, with a disk; called off; and with a xend that dies when it is not certain who has the domain."""
    words = [
        "-v",
        "-s",
        "-p",
        "no:cacheprovider",
        f"--timeout={_LIMIT_S}",
        "tests/guest/test_migration.py",
        "-k",
        which,
    ]
    done = run(
        ["python", "-m", "pytest", *words],
        files=image_files(),
        environ={
            "PYXEN_TEST_CACHE": str(CACHE),
            "PYXEN_TEST_HOST": "1",
            "PYXEN_CYCLES": os.environ.get("PYXEN_CYCLES", "2"),
            "PYXEN_FAULTS": os.environ.get("PYXEN_FAULTS", "given"),
        },
        live=True,
        timeout_s=_LIMIT_S,
    )
    assert done.status == 0, f"{done.output}\n{done.console}"
