"""Telling guests that they go on somewhere else, later, or as another domain than they were.

Each is told the time and given new random numbers. A clone's guest also gets its own name, its own identity and, for
vifs on bridges, its own MACs. Until it has those its taps are off their bridges: two guests with the same addresses
must never meet. What a guest must still be told is in its domain's spec, so that a later xend goes on with it.
"""

from __future__ import annotations

import asyncio
import re
import uuid as uuids

import msgspec

from pyxen import agent_api
from pyxen.config.model import vif_numbers
from pyxen.engine.contract import DomainSpec, Waking, tap_name
from pyxen.engine.tap import join
from pyxen.errors import Conflict, EngineError, NotFound, PyxenError
from pyxen.xend.agent import Agents
from pyxen.xend.life import Life
from pyxen.xend.registry import Live

_ANSWER_S = 60.0
_HOSTNAME, _MACHINE_ID = "/proc/sys/kernel/hostname", "/etc/machine-id"
_SCRIPT = r"""
change() {
  ip link set dev "$1" down && ip link set dev "$1" address "$2" && ip link set dev "$1" up || return 1
  # A client for DHCP knows the old address, and is started anew; systemd-networkd sees for itself.
  for process in /proc/[0-9]*; do
    command=$(tr '\0' ' ' <"$process/cmdline") 2>/dev/null
    case $command in
      *udhcpc*" -i $1 "*) kill "${process##*/}" && setsid $command </dev/null >/dev/null 2>&1 & ;;
    esac
  done
}

set -- $NEW_MACS
while [ $# -gt 1 ]; do
  found=
  for card in /sys/class/net/*; do
    read -r mac <"$card/address" || continue
    case $mac in
      "$2") found=1 ;;
      "$1") change "${card##*/}" "$2" && found=1 ;;
    esac
  done
  [ "$found" ] || { echo "it has no network card with the address $1, or can't change it" >&2; exit 1; }
  shift 2
done
"""
"""Run by the guest's own shell. Done a second time it changes nothing."""


class Wakers:
    """Tells them, in the background: a guest may have no agent, or be busy."""

    def __init__(self, life: Life, agents: Agents) -> None:
        self._life = life
        self._agents = agents

    def tell_soon(self, live: Live) -> None:
        live.asking.append(asyncio.create_task(self._tell(live)))

    async def _tell(self, live: Live) -> None:
        await self._agents.tell_restored(live)
        if (waking := live.spec.waking) is None:
            return
        name = live.spec.config.name
        try:
            await self._run(live, waking)
            async with self._life.registry.lock(live.spec.uuid):
                if self._life.registry.live.get(live.spec.uuid) is live:
                    await asyncio.to_thread(_join_bridges, live.spec, waking)
                    live.spec = msgspec.structs.replace(live.spec, waking=None)
                    await asyncio.to_thread(self._life.write_spec, live.spec)
            self._life.log.info("the clone's guest has its own name and addresses", name=name)
        except (PyxenError, OSError) as error:
            self._life.log.warning("the clone's guest goes on as its source", name=name, why=str(error))
            if waking.macs and (record := self._life.registry.records.get(live.spec.uuid)) is not None:
                self._life.tell("domain-offline", record, reason=str(error))

    async def _run(self, live: Live, waking: Waking) -> None:
        """Raises PyxenError if the guest can't be told."""
        wait_s = _ANSWER_S if waking.macs else 0.0
        # As files: a shell would take the guest longer to start than all the rest, without KVM.
        if waking.hostname is not None:
            await self._write(live, _HOSTNAME, waking.hostname, wait_s)
        try:
            if await self._agents.size(live, agent_api.ReadFileRequest(_MACHINE_ID, wait_s=wait_s)):
                await self._write(live, _MACHINE_ID, waking.machine_id, wait_s)
        except NotFound:
            pass
        except Conflict:  # it can't be written, unless nothing can now
            if live.process.paused or live.process.stopped is not None:
                raise
        if not waking.macs:
            return
        env = {"NEW_MACS": " ".join(f"{old} {new}" for old, new in waking.macs.items())}
        status, words = await self._agents.run(
            live, agent_api.ExecRequest(["/bin/sh", "-c", _SCRIPT], env=env, wait_s=wait_s)
        )
        if status:
            raise EngineError(words or f"its shell ended with status {status}")

    async def _write(self, live: Live, path: str, word: str, wait_s: float) -> None:
        await self._agents.write(live, agent_api.WriteFileRequest(path, wait_s=wait_s), f"{word}\n".encode())


def waking_of(record_name: str, *, named: bool, macs: dict[str, str]) -> Waking:
    """What a clone's guest is to be told. ``named``: its host name goes by its domain's."""
    hostname = record_name if named and re.fullmatch("[A-Za-z0-9-]{1,63}", record_name) else None
    return Waking(hostname=hostname, machine_id=uuids.uuid4().hex, macs=macs)


def _join_bridges(spec: DomainSpec, waking: Waking) -> None:
    """Put the taps that had to wait on their bridges. Raises PyxenError."""
    for number, vif in zip(vif_numbers(spec.config.vif), spec.config.vif, strict=True):
        if vif.bridge and vif.mac in waking.macs.values():
            join(tap_name(spec, number, vif), vif.bridge)
