"""An asynchronous client of a domain's xenstore socket, for xend: several requests go out in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pyxen.abi.xs_wire import HEADER, PAYLOAD_MAX, Error, Op
from pyxen.errors import Unavailable
from pyxen.xenstore.errors import XsError

_ANSWER_S = 10.0
_AT_ONCE = 32
"""Requests on their way: their answers fit into the sockets' buffers, so neither side waits for the other."""

Request = tuple[Op, bytes]
Reply = bytes | XsError


class AsyncStoreClient:
    """One connection; made by ``connect``. Methods raise XsError for what the store refuses, Unavailable when it is
    gone."""

    def __init__(self, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer

    async def ask(self, requests: Sequence[Request], *, tx: int = 0) -> list[Reply]:
        """The answers to ``requests``, in order; what is refused is an XsError in its place. No watch may be set."""
        if any(len(payload) > PAYLOAD_MAX for _, payload in requests):
            raise XsError(Error.E2BIG)
        replies: list[Reply] = []
        for start in range(0, len(requests), _AT_ONCE):
            part = requests[start : start + _AT_ONCE]
            data = b"".join(HEADER.pack(op, 0, tx, len(payload)) + payload for op, payload in part)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    self._writer.write(data)
                    await self._writer.drain()
                    for _ in part:
                        kind, reply = await self._receive()
                        replies.append(_error(reply) if kind == Op.ERROR else reply)
            except TimeoutError:
                raise self._gone("no answer in time") from None
            except OSError as error:
                raise self._gone(error.strerror or str(error)) from error
        return replies

    async def request(self, op: Op, payload: bytes, *, tx: int = 0) -> bytes:
        """One request; its answer's payload."""
        (reply,) = await self.ask([(op, payload)], tx=tx)
        if isinstance(reply, XsError):
            raise reply
        return reply

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[int]:
        """The id to pass as ``tx``. Committed at the end (XsError EAGAIN: do it all again), aborted by an exception."""
        tx = int((await self.request(Op.TRANSACTION_START, b"\0")).rstrip(b"\0"))
        try:
            yield tx
        except BaseException:
            await self.request(Op.TRANSACTION_END, b"F\0", tx=tx)
            raise
        await self.request(Op.TRANSACTION_END, b"T\0", tx=tx)

    async def watch(self, paths: Sequence[str]) -> AsyncIterator[tuple[str, str]]:
        """(what has changed, which of ``paths`` covers it), from now on, until the store goes."""
        for path in paths:
            raw = path.encode()
            self._writer.write(HEADER.pack(Op.WATCH, 0, 0, 2 * len(raw) + 2) + raw + b"\0" + raw + b"\0")
        first = set(paths)
        try:
            while True:
                kind, payload = await self._receive()
                if kind == Op.ERROR:
                    raise _error(payload)
                if kind != Op.WATCH_EVENT:
                    continue
                changed, token = (part.decode("utf-8", "replace") for part in payload.split(b"\0")[:2])
                if token in first:  # the event that says no more than that it is watched now
                    first.discard(token)
                else:
                    yield changed, token
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error

    def close(self) -> None:
        self._writer.close()

    async def _receive(self) -> tuple[int, bytes]:
        try:
            op, _, _, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return op, await self._reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise self._gone("it has closed the connection") from None

    def _gone(self, why: str) -> Unavailable:
        return Unavailable(f"the store at {self._path} is gone: {why}")


def _error(payload: bytes) -> XsError:
    return XsError(Error.__members__.get(payload.rstrip(b"\0").decode("ascii", "replace"), Error.EIO))


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[AsyncStoreClient]:
    """A connection for as long as it is used. Raises Unavailable."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"the store at {path} does not answer: {error}") from error
    client = AsyncStoreClient(path, reader, writer)
    try:
        yield client
    finally:
        client.close()
