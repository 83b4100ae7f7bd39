"""Finding a domain that something is to be done to, and changing what is written of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from pyxen.engine.contract import RunningDomain
from pyxen.errors import Conflict, InvalidRequest
from pyxen.xend.registry import Live, Registry
from pyxen.xend.store import Phase, Record, Store

DOMAIN_0 = ("Domain-0", "0", "00000000-0000-0000-0000-000000000000")
"""What Domain-0 is called by."""
GIVEN = "given "
"""How ``Record.intended`` begins while a domain is, or may be, another host's: nothing may be done to it here."""


def is_given(record: Record) -> bool:
    """Is the domain, or may it be, another host's?"""
    return (record.intended or "").startswith(GIVEN)


class Records:
    """What every part of xend that carries out requests needs first. Changes expect the domain's lock to be held."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self._registry = registry
        self._store = store

    def changeable(self, ref: str, verb: str) -> Record:
        """The domain ``ref``. Raises NotFound, and Conflict ("Cannot ``verb`` …") for Domain-0."""
        if ref in DOMAIN_0:
            raise Conflict(f"Cannot {verb} privileged domain Domain-0")
        return self._registry.find(ref)

    def running(self, record: Record) -> Live:
        """Its handle. Raises Conflict if it doesn't run."""
        live = self._registry.live.get(record.uuid)
        if live is None:
            raise Conflict(
                f"Domain '{record.name}' is not running",
                hint=f"Start it: xm start {record.name}" if record.managed else None,
            )
        if is_given(record):
            host = (record.intended or "").split(" ")[3]
            raise Conflict(
                f"Domain '{record.name}' has been given to {host}, which has not said yet whether it runs there",
                hint=f"If it certainly doesn't: xm migrate --here {record.name}",
            )
        return live

    def alive(self, record: Record, verb: str) -> Live:
        """Its handle. Raises Conflict if it doesn't run, or ("cannot ``verb`` …") if its guest has stopped."""
        live = self.running(record)
        if record.phase is not Phase.RUNNING or live.process.stopped is not None:
            raise Conflict(f"cannot {verb} '{record.name}': its guest has stopped")
        return live

    def present(self, record: Record) -> Live | None:
        """Its handle; None for a managed one that doesn't run. Raises Conflict if it has gone."""
        return None if record.managed and record.phase is Phase.HALTED else self.running(record)

    async def change(self, record: Record, meta: Mapping[str, str] | None = None, **values: object) -> None:
        """Set attributes of the record and write it, with values of ``meta``; if that can't be, it is as before."""
        before = {key: getattr(record, key) for key in values}
        for key, value in values.items():
            setattr(record, key, value)
        try:
            await self._store.save(record, meta=meta)
        except BaseException:
            for key, value in before.items():
                setattr(record, key, value)
            raise

    async def reconfigure(
        self, record: Record, order: Callable[[RunningDomain], Awaitable[None]], **values: object
    ) -> None:
        """Change the description, for this life of the domain (``order``) and the next ones: both or neither."""
        before = record.config
        await self.change(record, config=msgspec.structs.replace(before, **values))
        if (live := self._registry.live.get(record.uuid)) is None:
            return
        try:
            await order(live.process)
        except BaseException:
            await self.change(record, config=before)
            raise

    def check_free(self, name: str, uuid: str | None) -> None:
        """Raises Conflict (InvalidRequest for Domain-0's) if the name or UUID belongs to a domain."""
        if name in DOMAIN_0:
            raise InvalidRequest(f"the name '{name}' belongs to domain 0")
        other = self._registry.named(name)
        if other is not None:
            raise Conflict(
                f"Domain '{name}' already exists" + (f" with ID '{other.domid}'" if other.domid else " (managed)"),
                hint=f"Start it: xm start {name}" if other.phase is Phase.HALTED else "Choose another name.",
            )
        if uuid is not None and uuid in self._registry.records:
            raise Conflict(f"UUID {uuid} belongs to domain '{self._registry.records[uuid].name}'")
