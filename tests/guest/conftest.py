"""Fixtures of the guest tests: a host, and the images they boot, built once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.host import CACHE, Host, built_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The folder of the image tiny, built from Debian's packages on the first run in this checkout."""
    if "PYXEN_TEST_HOST" not in os.environ:  # there it has come along, and nothing could be fetched
        built_image("tiny")
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


@pytest.fixture(scope="module")
def shared(tiny: Path) -> Iterator[Host]:
    """One xend for all tests of a module."""
    host = Host()
    host.start()
    yield host
    assert not host.stop()
