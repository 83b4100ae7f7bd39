"""Where a domain's core goes: a file that is there when it is whole, and never before."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from pathlib import Path

from pyxen.engine.contract import RunningDomain
from pyxen.xend.part import name_part, open_part, part_path


async def write_core(process: RunningDomain, path: Path, *, live: bool = False) -> int:
    """Have the core written to ``path``, in place of what is there; returns how many bytes that takes on the disk.

    Raises InvalidRequest if the file can't be made, and whatever the engine raises; then nothing is left.
    """
    part = part_path(path, uuid.uuid4().hex)
    # The domain's process may not be allowed to open it: it gets the descriptor.
    fd = await asyncio.to_thread(open_part, part, path)
    try:
        await process.dump_core(fd, live=live)
        await asyncio.to_thread(name_part, part, path)
        return os.fstat(fd).st_blocks * 512
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(fd)
