"""Fixtures of the guest tests: a host, and the images they boot, built once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.host import CACHE, Host


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the image tiny, built from Debian's packages on the first run in this checkout."""
    from pyxen.image.store import ImageStore

    store = ImageStore(CACHE / "images", CACHE / "kernels")
    CACHE.mkdir(parents=True, exist_ok=True)
    if "PYXEN_TEST_HOST" not in os.environ:  # there it has come along, and nothing could be fetched
        with (CACHE / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another run in this checkout may be building it
            store.build("tiny", {}, force=False, progress=lambda step: None)
    return CACHE / "images" / "tiny"


@pytest.fixture
def host(tiny: Path) -> Iterator[Host]:
    """A running xend of the test's own; afterwards nothing of it may be left."""
    host = Host()
    host.start()
    try:
        yield host
    finally:
        leftovers = host.stop()
    assert not leftovers, f"left behind: {leftovers}"
