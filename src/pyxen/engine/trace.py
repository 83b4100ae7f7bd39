"""The stream of a hypervisor process's trace, passed on as it comes and read no faster than it is wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import msgspec

from pyxen.api import TraceRecord
from pyxen.engine.domain import ProcessDomain
from pyxen.errors import Conflict, EngineError, InvalidRequest, PyxenError, ResourceExhausted

_ANSWER_S = 30.0
_CHUNK_BYTES = 64 * 1024
_END = b'{"kind":"end"'
_PATIENCE_S = 2.0
"""A process that ended without a word may be known to have done so a moment later."""


async def follow(domain: ProcessDomain, only: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """Lines of TraceRecord as JSON, in chunks of whole lines, after the process has agreed; the last one is ``end``.

    Raises InvalidRequest for an unknown kind, ResourceExhausted beyond the number of readers that one domain has.
    """
    name = domain.spec.config.name
    if domain.stopped is not None:
        raise Conflict(f"cannot trace '{name}': its guest has stopped")
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(domain.directory / "control.sock", limit=_CHUNK_BYTES)
            try:
                order = {"execute": "trace", "arguments": {"only": list(only)}}
                writer.write(msgspec.json.encode(order) + b"\n")
                answer = msgspec.json.decode(await reader.readline())
            except BaseException:
                writer.close()
                raise
    except (OSError, ValueError, TimeoutError) as error:
        raise EngineError(f"the hypervisor of '{name}' does not answer: {error}") from error
    if "error" in answer:
        writer.close()
        raise _refusal(answer["error"])
    return _pass_on(domain, reader, writer)


def _refusal(error: dict[str, str]) -> PyxenError:
    words = error.get("desc", "the hypervisor has refused")
    for kind in (InvalidRequest, ResourceExhausted):
        if error.get("code") == kind.code:
            return kind(words)
    return EngineError(words)


async def _pass_on(
    domain: ProcessDomain, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncGenerator[bytes, None]:
    rest, ended = b"", False
    try:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK_BYTES):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    ended = whole.rpartition(b"\n")[2].startswith(_END)
                    yield whole + b"\n"
        if not ended:
            yield msgspec.json.encode(TraceRecord("end", await _why(domain))) + b"\n"
    finally:
        writer.close()


async def _why(domain: ProcessDomain) -> str:
    """Why the process has gone, as far as it is known."""
    stopped = asyncio.Event()
    domain.on_stopped(lambda _: stopped.set())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await stopped.wait()
    return domain.stopped.reason if domain.stopped is not None else "lost"
