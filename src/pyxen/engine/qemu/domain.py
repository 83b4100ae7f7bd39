"""A domain that QEMU runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyxen.engine import cgroup
from pyxen.engine.domain import ProcessDomain
from pyxen.engine.qemu.qmp import execute
from pyxen.errors import Conflict, PyxenError


class QemuDomain(ProcessDomain):
    """Speaks to its QEMU by QMP, one connection for each order."""

    async def pause(self) -> None:
        await self._order("pause", "stop")
        await self.wait_paused(True)

    async def unpause(self) -> None:
        await self._order("unpause", "cont")
        await self.wait_paused(False)

    async def request_shutdown(self, reason: str) -> None:
        # The power button is all there is; xend remembers what was meant by it.
        await self._order("shut down", "system_powerdown")

    async def destroy(self) -> None:
        # SIGTERM rather than SIGKILL: QEMU then writes back what it still holds of the disks.
        await super().destroy()
        cgroup.remove(self.spec.uuid)

    async def dump_core(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._execute("dump-guest-memory", {"paging": False, "protocol": "fd:core"}, fd=("core", fd))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    async def _order(self, what: str, command: str) -> None:
        """A command that only makes sense while the guest lives."""
        if self.stopped is not None:
            raise Conflict(f"cannot {what} '{self.spec.config.name}': its guest has stopped")
        await self._execute(command)

    async def _execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, fd: tuple[str, int] | None = None
    ) -> Any:
        try:
            # A core of many GiB takes its time.
            return await execute(self.directory, command, arguments, fd=fd, timeout_s=30.0 if fd is None else None)
        except PyxenError as error:
            if not self.alive:
                raise Conflict(f"'{self.spec.config.name}' is gone") from error
            raise type(error)(f"'{self.spec.config.name}': {error.message}", hint=error.hint) from error
