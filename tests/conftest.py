"""Fixtures for every test."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """qemu.qmp and uvicorn are asyncio's: async tests run on nothing else."""
    return "asyncio"
