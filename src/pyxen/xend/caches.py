"""What xend keeps that it could make again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pyxen.image.pruning import prune
from pyxen.xend.life import Life


async def prune_kernels(life: Life) -> None:
    """Remove unpacked kernels, packages and ramdisks beyond ``kernel_cache_mib`` that no domain uses."""
    used = [
        path
        for spec in life.registry.running_specs()
        for path in (spec.kernel, spec.ramdisk, *(share.path for share in spec.config.p9))
        if path is not None
    ]
    most = life.settings.kernel_cache_mib << 20
    for path in await asyncio.to_thread(prune, life.images.kernels, list(map(Path, used)), most):
        life.log.info("removed what can be made again", path=str(path))
