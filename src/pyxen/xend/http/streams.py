"""Responses that go on for a while: server-sent events, lines of JSON, a file's tail."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import BinaryIO

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyxen import api
from pyxen.engine.inotify import Inotify
from pyxen.xend.http.problems import describe
from pyxen.xend.log import tail_offset

HEARTBEAT_S = 15.0
_CHUNK_BYTES = 64 * 1024
_ROTATION_S = 10.0
"""A log that is rotated says so to nobody: then it is looked at."""


class Stream(Response):
    """A response whose body is made as it is sent. A client that goes away closes the generator at once."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers()
        # A proxy that collects what it forwards would hold events back.
        self.headers["x-accel-buffering"] = "no"
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def sse(events: AsyncIterator[api.Event], heartbeat: float = HEARTBEAT_S) -> AsyncGenerator[bytes, None]:
    """Events as ``text/event-stream``, their sequence as the id; a comment whenever nothing has come for a while."""
    # The first bytes tell a client at once that it is subscribed.
    yield b": xend's events\n\n"
    upcoming: asyncio.Future[api.Event] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait((upcoming,), timeout=heartbeat)
            if not done:
                yield b": still here\n\n"
                continue
            try:
                event = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield b"id: %d\ndata: %b\n\n" % (event.sequence, msgspec.json.encode(event))
    finally:
        if upcoming is not None:
            upcoming.cancel()


async def ndjson(steps: AsyncIterator[api.Progress]) -> AsyncGenerator[bytes, None]:
    """A long job's steps, one JSON object a line. An error is its last step."""
    try:
        async for step in steps:
            yield msgspec.json.encode(step) + b"\n"
    except Exception as error:
        yield msgspec.json.encode(api.Progress(step="failed", done=True, error=describe(error))) + b"\n"
    finally:
        close = getattr(steps, "aclose", None)
        if close is not None:
            await close()


async def file_tail(path: Path, lines: int | None) -> AsyncGenerator[bytes, None]:
    """The last ``lines`` lines of a file (None: all of it) as it is now; nothing if there is no such file."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError:
        return
    with file:
        end = file.seek(0, 2)
        start = 0 if lines is None else await asyncio.to_thread(tail_offset, file, lines)
        file.seek(start)
        while start < end:
            chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, end - start))
            if not chunk:
                return
            start += len(chunk)
            yield chunk


async def file_growth(path: Path, lines: int | None, until: Awaitable[None]) -> AsyncGenerator[bytes, None]:
    """The last ``lines`` lines of a log (None: all of it), then what is appended, up to ``until``.

    Goes on in the new file when the log has been rotated. Ends at once if there is no such file.
    """
    inotify, changed = Inotify(), asyncio.Event()
    ending = asyncio.ensure_future(until)
    ending.add_done_callback(lambda _: changed.set())
    try:
        while not ending.done():
            try:
                file = await asyncio.to_thread(path.open, "rb")
            except FileNotFoundError:
                return
            with file:
                unwatch = inotify.watch(path, changed.set)
                try:
                    file.seek(0 if lines is None else await asyncio.to_thread(tail_offset, file, lines))
                    # What is appended between a last look and the rotation is read before the new file.
                    last = False
                    while not ending.done():
                        changed.clear()
                        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                            yield chunk
                        if last:
                            break
                        last = await asyncio.to_thread(_is_another, path, file)
                        if not last:
                            with contextlib.suppress(TimeoutError):
                                async with asyncio.timeout(_ROTATION_S):
                                    await changed.wait()
                finally:
                    unwatch()
            lines = None
    finally:
        ending.cancel()
        inotify.close()


def _is_another(path: Path, file: BinaryIO) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    open_file = os.fstat(file.fileno())
    return (found.st_dev, found.st_ino) != (open_file.st_dev, open_file.st_ino)
