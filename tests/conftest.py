"""Fixtures for every test."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's business, never a test's.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    """qemu.qmp and uvicorn are asyncio's: async tests run on nothing else."""
    return "asyncio"
