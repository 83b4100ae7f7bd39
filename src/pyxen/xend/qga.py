"""QEMU's guest agent in a guest, as xend asks it (:mod:`pyxen.abi.qga`)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import time
from typing import Any, Final

from pyxen import agent_api
from pyxen.api import AgentKind
from pyxen.errors import EngineError, PyxenError
from pyxen.xend.linked import Linked
from pyxen.xend.qga_commands import GuestExec, GuestRead, GuestWrite, begin, refusal
from pyxen.xend.qga_lines import printable
from pyxen.xend.qga_link import QgaError, QgaLink

_SEED_BYTES: Final = 64
_FREEZE_S: Final = 60.0
_MODES: Final = {"reboot": "reboot"}
_MOST_INTERFACES, _MOST_ADDRESSES = 64, 32
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


class QemuAgent(Linked[QgaLink]):
    """A link to it."""

    kind = AgentKind.QEMU

    def __init__(self, link: QgaLink) -> None:
        super().__init__(link.name, link)

    async def begin(self, request: agent_api.AgentRequest) -> GuestExec | GuestRead | GuestWrite:
        return await begin(self._link, request)

    async def wake(self) -> None:
        # First of all: while its file systems are frozen it does nothing else.
        if await self._ask("guest-fsfreeze-status") == "frozen":
            await self.thaw_files()
        problem: PyxenError | None = None
        try:
            await self._set_time()
        except PyxenError as error:
            problem = error
        try:
            # They are mixed in, not counted: only the kernel itself, or our own agent, could do that.
            await self._link.run(["/bin/sh", "-c", "cat >/dev/urandom"], os.urandom(_SEED_BYTES))
        except QgaError as error:
            problem = problem or refusal(self._name, None, error)
        if problem is not None:
            raise problem

    async def shut_down(self, reason: str) -> None:
        # A halted machine would stay; xend knows what was meant.
        await self._link.tell("guest-shutdown", {"mode": _MODES.get(reason, "powerdown")})

    async def use_vcpus(self, count: int) -> None:
        found = await self._ask("guest-get-vcpus")
        changes = [
            {"logical-id": each["logical-id"], "online": each["logical-id"] < count}
            for each in _dicts(found)
            if isinstance(each.get("logical-id"), int) and each["logical-id"] > 0
            if each.get("online") is not (each["logical-id"] < count)
        ]
        if changes and await self._ask("guest-set-vcpus", {"vcpus": changes}) != len(changes):
            raise EngineError(f"the guest of '{self._name}' has changed only some of its VCPUs")

    async def interfaces(self) -> list[agent_api.GuestInterface]:
        found = []
        for each in _dicts(await self._ask("guest-network-get-interfaces"))[:_MOST_INTERFACES]:
            name, mac = printable(each.get("name"), 32), printable(each.get("hardware-address"), 32).lower()
            if name and name != "lo":
                addresses = [_address(one) for one in _dicts(each.get("ip-addresses"))[:_MOST_ADDRESSES]]
                mac_or_none = mac if _MAC.fullmatch(mac) else None
                found.append(agent_api.GuestInterface(name, mac_or_none, [one for one in addresses if one]))
        return found

    async def freeze_files(self) -> None:
        await self._ask("guest-fsfreeze-freeze", timeout_s=_FREEZE_S)

    async def thaw_files(self) -> None:
        await self._ask("guest-fsfreeze-thaw", timeout_s=_FREEZE_S)

    async def _set_time(self) -> None:
        try:
            await self._link.ask("guest-set-time", {"time": time.time_ns()})
        except QgaError as error:
            # The time is set, but not the hardware's clock, which is the host's and right anyway.
            if "hwclock" in error.words:
                return
            # Without /sbin/hwclock the agent doesn't even try.
            with contextlib.suppress(QgaError):
                if (await self._link.run(["/bin/sh", "-c", 'date -s "@$1"', "sh", str(int(time.time()))]))[0] == 0:
                    return
            raise refusal(self._name, None, error) from None

    async def _ask(self, command: str, arguments: dict[str, object] | None = None, *, timeout_s: float = 10.0) -> Any:
        try:
            return await self._link.ask(command, arguments, timeout_s=timeout_s)
        except QgaError as error:
            raise refusal(self._name, None, error) from None


def _dicts(found: object) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _address(found: dict[str, Any]) -> str:
    """An address with the length of its network's prefix; empty if it is none."""
    try:
        return str(ipaddress.ip_interface(f"{found['ip-address']}/{int(found['prefix'])}"))
    except (KeyError, TypeError, ValueError):
        return ""
