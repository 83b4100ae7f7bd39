"""What xend can ask of a guest's agent, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pyxen import agent_api
from pyxen.abi.agent import Stream
from pyxen.api import AgentKind


class GuestCommand(Protocol):
    """A command that runs, or a file that is read or written."""

    started: bytes | None
    """What STARTED says of it (abi.agent)."""
    wait_status: int | None
    """What wait(2) said, once it has ended."""

    async def output(self) -> tuple[Stream, bytes] | None:
        """The next piece of output (an empty one: that stream's end); None when all has ended.

        Raises PyxenError if it failed, or Refused with Linux' number for why.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Give it input, as fast as it takes it; what comes after its end is thrown away."""
        ...

    async def end_input(self) -> None: ...

    async def signal(self, number: int) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def abandon(self) -> None:
        """Nobody is interested any more: hang up, and let what it still says go."""
        ...

    @property
    def over(self) -> bool: ...


class GuestAgent(Protocol):
    """A conversation with an agent. What it can't do raises Unsupported, what goes wrong another PyxenError."""

    kind: AgentKind
    on_gone: Callable[[], None]
    """Called when the conversation has ended."""

    @property
    def broken(self) -> bool: ...

    async def begin(self, request: agent_api.AgentRequest) -> GuestCommand:
        """Start a command, or open a file; returns when it has started, or is about to."""
        ...

    async def wake(self) -> None:
        """Tell a guest that goes on elsewhere or later the time, and give it new random numbers."""
        ...

    async def shut_down(self, reason: str) -> None:
        """Have it ``poweroff``, ``reboot`` or ``halt``. Does not wait for it."""
        ...

    async def use_vcpus(self, count: int) -> None:
        """Have it use VCPUs 0 to ``count`` - 1 of those that it has, and no others."""
        ...

    async def interfaces(self) -> list[agent_api.GuestInterface]:
        """Its network interfaces, but for those that lead to itself."""
        ...

    async def freeze_files(self) -> None:
        """Have it write out its file systems, and change nothing on them until ``thaw_files`` (or ``wake``)."""
        ...

    async def thaw_files(self) -> None: ...

    def close(self) -> None: ...
