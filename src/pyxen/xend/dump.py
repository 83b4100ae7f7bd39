"""Where a domain's core goes: a file that is there when it is whole, and never before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from pathlib import Path

from pyxen.engine.contract import RunningDomain
from pyxen.errors import InvalidRequest


async def write_core(process: RunningDomain, path: Path, *, live: bool = False) -> int:
    """Have the core written to ``path``, in place of what is there; returns how many bytes that takes on the disk.

    Raises InvalidRequest if the file can't be made, and whatever the engine raises; then nothing is left.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        # The domain's process may not be allowed to open it: it gets the descriptor.
        fd = await asyncio.to_thread(
            os.open, part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error
    try:
        await process.dump_core(fd, live=live)
        await asyncio.to_thread(_finish, part, path)
        return os.fstat(fd).st_blocks * 512
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(fd)


def _finish(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error
