"""Tests in the test host take minutes on a busy machine: their limits only end what hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

_LIMIT_S = 1000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(_LIMIT_S))
