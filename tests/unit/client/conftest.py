from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.client import Address, Client

from .stub import Stub


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with Stub(tmp_path / "xend.sock") as server:
        yield server


@pytest.fixture
def client(stub: Stub) -> Iterator[Client]:
    with Client(Address(socket=stub.path)) as made:
        yield made
