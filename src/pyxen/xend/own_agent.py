"""Our own agent in a guest, as xend asks it (:mod:`pyxen.abi.agent`)."""

from __future__ import annotations

import os
import re
import struct
import time
from typing import Final

from pyxen import agent_api
from pyxen.abi.agent import EXEC_TTY, Kind, Stream
from pyxen.api import AgentKind
from pyxen.errors import EngineError, Unsupported
from pyxen.xend.agent_frames import exec_payload
from pyxen.xend.agent_link import Command, Link, Refused
from pyxen.xend.agent_words import ENV, LAST_WORDS, explain, run_to_end
from pyxen.xend.linked import Linked

_SEED_BYTES: Final = 64
_MOST_ADDRESSES_BYTES: Final = 64 << 10
_USE: Final = """
for each in /sys/devices/system/cpu/cpu[1-9]*/online; do
  number=${each#*/cpu/cpu}
  number=${number%/*}
  [ $number -lt $1 ] && want=1 || want=0
  [ "$(cat $each)" = $want ] || echo $want >$each || exit
done
"""
_ADDRESSES: Final = "ip -o link && ip -o addr"
_LINE: Final = re.compile(r"\d+: ([^\s:@]{1,15})[:@\s].*?\s(link/ether|inet6?) ([0-9a-fA-F.:]+(?:/\d{1,3})?)\s")


class OwnAgent(Linked[Link]):
    """A link to it. ``name``: its domain's."""

    kind = AgentKind.PYXEN

    async def begin(self, request: agent_api.AgentRequest) -> Command:
        try:
            match request:
                case agent_api.ExecRequest():
                    payload = exec_payload(
                        request.argv,
                        {**ENV, **request.env},
                        request.cwd,
                        flags=EXEC_TTY if request.tty else 0,
                        rows=request.rows,
                        columns=request.columns,
                    )
                    return await self._link.begin(Kind.EXEC, 0, payload)
                case agent_api.ReadFileRequest():
                    return await self._link.begin(Kind.OPEN, Stream.OUT, _open_payload(0, request.path))
                case agent_api.WriteFileRequest():
                    return await self._link.begin(Kind.OPEN, Stream.IN, _open_payload(request.mode, request.path))
        except Refused as refused:
            raise explain(self._name, request, refused.errno) from None

    async def run(self, argv: list[str], *, most: int = LAST_WORDS) -> tuple[int, str]:
        """Run a command to its end; its status, and the last ``most`` bytes that it has said. Raises PyxenError."""
        request = agent_api.ExecRequest(argv)
        return await run_to_end(self._name, await self.begin(request), request, most=most)

    async def wake(self) -> None:
        try:
            await self._link.order(Kind.RESEED, os.urandom(_SEED_BYTES))
            await self._link.order(Kind.SET_TIME, struct.pack("<QQ", *divmod(time.time_ns(), 10**9)))
        except Refused as refused:
            raise EngineError(os.strerror(refused.errno)) from None

    async def shut_down(self, reason: str) -> None:
        # A halted machine would stay; xend knows what was meant.
        await self.run(["reboot" if reason == "reboot" else "poweroff"])

    async def use_vcpus(self, count: int) -> None:
        status, said = await self.run(["sh", "-c", _USE, "sh", str(count)])
        if status:
            why = said.splitlines()[-1] if said else f"status {status}"
            raise EngineError(f"the guest of '{self._name}' can't change its VCPUs: {why}")

    async def interfaces(self) -> list[agent_api.GuestInterface]:
        _, said = await self.run(["sh", "-c", _ADDRESSES], most=_MOST_ADDRESSES_BYTES)
        return parse_addresses(said)

    async def freeze_files(self) -> None:
        raise Unsupported(f"the agent in '{self._name}' can't freeze file systems")

    async def thaw_files(self) -> None:
        raise Unsupported(f"the agent in '{self._name}' can't thaw file systems")


def parse_addresses(text: str) -> list[agent_api.GuestInterface]:
    """What ``ip -o link`` and ``ip -o addr`` say, iproute2's or busybox's."""
    found: dict[str, agent_api.GuestInterface] = {}
    for line in text.splitlines():
        if (match := _LINE.match(f"{line} ")) is None or match[1] == "lo":
            continue
        interface = found.setdefault(match[1], agent_api.GuestInterface(match[1]))
        if match[2] == "link/ether":
            interface.mac = match[3].lower()
        else:
            interface.addresses.append(match[3])
    return list(found.values())


def _open_payload(mode: int, path: str) -> bytes:
    return struct.pack("<I", mode) + path.encode(errors="surrogateescape") + b"\0"
