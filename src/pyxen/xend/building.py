"""``python -m pyxen.image`` as a process of its own: what it does takes minutes, needs no xend, and can be ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator

import msgspec

from pyxen import api
from pyxen.errors import (
    ConfigError,
    Conflict,
    EngineError,
    InvalidRequest,
    NotFound,
    PyxenError,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)

_KINDS = (InvalidRequest, ConfigError, Unsupported, NotFound, Conflict, ResourceExhausted, Unavailable)


async def build(what: str, *words: str) -> AsyncGenerator[api.Progress, None]:
    """Its steps, the last of them done, perhaps with an error. Closing the iterator ends it.

    Raises EngineError ("``what`` failed: …") if it died without a word.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pyxen.image", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaint = asyncio.create_task(process.stderr.read())
    finished = False
    try:
        async for line in process.stdout:
            step = msgspec.json.decode(line, type=api.Progress)
            finished = finished or step.done
            yield step
        if not finished:
            said = (await complaint).decode(errors="replace").strip().splitlines()
            raise EngineError(f"{what} failed: {said[-1] if said else 'the builder died'}")
    finally:
        # To send a signal to one that has just ended would take its status from asyncio, which then complains.
        if not finished and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        complaint.cancel()
        await process.wait()


def failure(problem: api.Problem) -> PyxenError:
    """What the last step reports, as an error of this process."""
    kind = next((each for each in _KINDS if each.code == problem.code), EngineError)
    return kind(problem.detail or problem.title, hint=problem.hint)
