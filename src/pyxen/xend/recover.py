"""What a starting xend does about what an earlier one left: adopt what runs, end what is half made.

Nothing is assumed about how the earlier one ended. The store says what should be, the domains' folders and processes
say what is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from pyxen.api import ShutdownReason
from pyxen.engine.contract import DomainSpec, Engine, RunningDomain, Stopped
from pyxen.errors import PyxenError
from pyxen.xend import sandboxes, saving, snapshot_files, snapshots, waiting
from pyxen.xend.caches import prune_kernels
from pyxen.xend.life import Life
from pyxen.xend.migration import Migration
from pyxen.xend.records import is_given
from pyxen.xend.store import Origin, Phase, Record

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


async def recover(life: Life, migration: Migration) -> None:
    """Bring store, folders and processes to agree. What was cut short goes on in the background."""
    boot_id = BOOT_ID.read_text().strip()
    same_boot = await life.store.meta("boot_id") == boot_id
    await life.store.set_meta("boot_id", boot_id)
    await life.pools.load()
    for problem in await life.pci.load():
        life.log.warning("PCI device not assignable any more", error=problem)
    records = await life.store.records()
    life.registry.records.update({record.uuid: record for record in records})
    for record in records:
        match record.phase:
            case Phase.BUILDING:
                await _finish_or_undo(life, record)
            case Phase.RUNNING:
                await _find_again(life, migration, record, same_boot=same_boot)
            case Phase.PRESERVED:
                await _find_preserved(life, record)
            case Phase.HALTED:
                pass
    await migration.sweep()
    await asyncio.to_thread(_sweep_orphans, life)
    await asyncio.to_thread(snapshot_files.sweep, life)
    await asyncio.to_thread(waiting.sweep, life)
    life.spawn(prune_kernels(life))


async def _finish_or_undo(life: Life, record: Record) -> None:
    if record.domid is not None:
        await asyncio.to_thread(life.sweep, life.directory(record.domid))
    if record.origin is Origin.RESTART and (record.intended or "").startswith(snapshots.KINDS):
        life.spawn(snapshots.Snapshots(life).finish(record))
    elif record.origin is Origin.RESTART:
        life.spawn(_rebuild(life, record))
    else:
        life.log.warning("half-made domain removed", name=record.name, domid=record.domid)
        await life.retire(record)


async def _rebuild(life: Life, record: Record) -> None:
    async with life.registry.lock(record.uuid):
        await life.restarts.rebuild(record, record.domid)


async def _find_again(life: Life, migration: Migration, record: Record, *, same_boot: bool) -> None:
    assert record.domid is not None
    await migration.recall(record)
    directory = life.directory(record.domid)
    found = await _adopt(life, record, directory)
    if found is None and is_given(record):
        migration.outgoing.settle_soon(record)
        return
    if found is None and saving.is_whole(record):
        await life.end(record, ShutdownReason.SUSPEND)
        return
    if found is None and same_boot and directory.is_dir():
        life.spawn(
            life.stopped(record.uuid, record.domid, Stopped(ShutdownReason.FAILED, "it died while xend was away"))
        )
        return
    if found is None:
        # The host has been restarted, or somebody removed the folder of a domain.
        life.log.warning("domain lost", name=record.name, domid=record.domid, host_restarted=not same_boot)
        record.last_reason = ShutdownReason.FAILED
        await asyncio.to_thread(life.sweep, directory)
        life.tell("domain-lost", record, reason="host restarted" if not same_boot else "no process left")
        await life.retire(record)
        return
    spec, process = found
    life.adopt(record, spec, process)
    if process.stopped is not None or record.intended is None:
        return
    if record.intended.startswith(snapshots.KINDS):
        life.spawn(snapshots.Snapshots(life).finish(record))
    else:
        life.spawn(_repeat_order(life, migration, record, process))


async def _repeat_order(life: Life, migration: Migration, record: Record, process: RunningDomain) -> None:
    """An order was written down before it was carried out, so it may not have been."""
    async with life.registry.lock(record.uuid):
        if record.intended is not None and record.intended.startswith(saving.KINDS):
            await saving.finish(life, record)
        elif migration.concerns(record):
            await migration.finish(record)
        elif record.intended == sandboxes.ENDS_WITH_ITS_COMMAND:
            await sandboxes.finish(life, record)
        elif record.intended == "destroy":
            await life.end(record, ShutdownReason.DESTROYED)
        elif record.intended is not None and process.stopped is None:
            await life.ask(record, life.registry.live[record.uuid], record.intended)


async def _find_preserved(life: Life, record: Record) -> None:
    if record.domid is None:
        return
    found = await _adopt(life, record, life.directory(record.domid))
    if found is not None:
        life.adopt(record, *found)


async def _adopt(life: Life, record: Record, directory: Path) -> tuple[DomainSpec, RunningDomain] | None:
    try:
        spec = msgspec.json.decode((directory / "domain.json").read_bytes(), type=DomainSpec)
    except (OSError, msgspec.DecodeError):
        return None
    spec = msgspec.structs.replace(spec, config=msgspec.structs.replace(spec.config, name=record.name))
    engine = _engine(life, record)
    if engine is None:
        return None
    try:
        spec = engine.lay_out(spec)
        process = await engine.adopt(spec, directory)
    except PyxenError as error:
        life.log.error("domain not adopted", name=record.name, error=str(error))
        return None
    return None if process is None else (spec, process)


def _engine(life: Life, record: Record) -> Engine | None:
    return next((engine for engine in life.engines if engine.name == record.engine), None)


def _sweep_orphans(life: Life) -> None:
    """Remove folders, and the processes in them, that no record owns."""
    if not life.roots.domains.is_dir():
        return
    owned = {str(record.domid) for record in life.registry.records.values() if record.domid is not None}
    for directory in life.roots.domains.iterdir():
        if directory.name not in owned:
            life.log.warning("orphan removed", directory=str(directory))
            life.sweep(directory)
