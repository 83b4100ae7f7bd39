"""Pictures of screens: handed over whole, or refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from pyxen import api
from pyxen.engine.fake import FakeDomain
from pyxen.errors import Conflict, EngineError, NotFound, Unsupported
from tests.unit.xend.conftest import Xend, describe

pytestmark = pytest.mark.anyio
Boot = Callable[..., Awaitable[Xend]]


async def test_a_picture_comes_as_the_monitor_wrote_it(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    xend = await boot()
    with pytest.raises(NotFound):
        await xend.domains.screens.picture("web")
    with pytest.raises(Conflict, match="the host itself"):
        await xend.domains.screens.picture("Domain-0")
    await xend.domains.create(api.CreateRequest(describe()))
    with pytest.raises(Unsupported, match="'web' has no screen"):
        await xend.domains.screens.picture("web")
    picture = os.urandom(200_000)

    async def write(self: FakeDomain, file: int) -> None:
        assert os.write(file, picture) == len(picture)

    monkeypatch.setattr(FakeDomain, "screendump", write)
    assert await xend.domains.screens.picture("web") == picture

    async def forget(self: FakeDomain, file: int) -> None:
        pass

    monkeypatch.setattr(FakeDomain, "screendump", forget)
    with pytest.raises(EngineError, match="has written no picture"):
        await xend.domains.screens.picture("web")
