from __future__ import annotations

import asyncio

import pytest

from pyxen.xend.finishing import to_the_end

pytestmark = pytest.mark.anyio


async def test_a_step_is_done_whole_however_often_it_is_cancelled() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        await go_on.wait()
        done.set()

    async def tidy() -> None:
        await to_the_end(step())

    task = asyncio.create_task(tidy())
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_what_it_returns_and_raises_is_passed_on() -> None:
    async def three() -> int:
        return 3

    async def broken() -> None:
        raise ValueError("so")

    assert await to_the_end(three()) == 3
    with pytest.raises(ValueError, match="so"):
        await to_the_end(broken())
