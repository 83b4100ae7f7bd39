"""Snapshots: a domain's memory, devices and writable disks as they were at one moment.

Copies depend on nothing but the images below them, so that each can be removed by itself. Where an xend dies:

    a snapshot is taken: ``intended`` says so before the guest stands still; the next xend lets it go on.
    a revert: ``intended`` says so first, and the next xend repeats it. The copies are made beside the disks before the
    domain ends; then the store says *building*, the process ends, and the copies get the disks' names, one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid as uuids
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pyxen import snapshot_api
from pyxen.api import AgentKind
from pyxen.errors import Conflict, EngineError, NotFound, PyxenError, ResourceExhausted, Unsupported
from pyxen.image.files import write_file
from pyxen.xend import bound, saved, saving
from pyxen.xend.belongings import variables
from pyxen.xend.copies import copy_disk, sync_folder
from pyxen.xend.life import Life
from pyxen.xend.registry import Live, now
from pyxen.xend.snapshot_files import (
    DESCRIPTION,
    STATE,
    VARIABLES,
    VERSION,
    Description,
    DiskCopy,
    check,
    copy_beside,
    discard,
    make,
    moves_back,
    put_in_place,
    read,
    writable_disks,
)
from pyxen.xend.steps import reached
from pyxen.xend.store import Origin, Phase, Record
from pyxen.xend.templates import Templates
from pyxen.xend.waiting import Waiting

_AGENT_S = 10.0
SNAPSHOT, REVERT = "snapshot", "revert"
"""The first word of ``Record.intended``; after it the guest's fate (go-on or stay), or the snapshot's name."""
KINDS = (f"{SNAPSHOT} ", f"{REVERT} ")


if TYPE_CHECKING:
    from pyxen.xend.agent import Agents


class Snapshots:
    """Takes, lists and removes them, and takes domains back to them."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._records = life.records
        self.waiting = Waiting(life)
        self.templates = Templates(lambda folder: life.spawn(self.waiting.drop(folder)))
        self.agents: Agents | None = None
        """Of guests whose file systems are to be quiet."""

    def listed(self, ref: str | None = None) -> snapshot_api.SnapshotList:
        """All, or a domain's, the oldest first. Blocking. Raises NotFound for a domain that neither is nor has any."""
        found = [view for folder in self._folders() if (view := self._view(folder)) is not None]
        if ref is not None:
            record = self._find_record(ref)
            found = [each for each in found if _is_of(each, record, ref)]
            if record is None and not found:
                self._life.registry.find(ref)
        return snapshot_api.SnapshotList(sorted(found, key=lambda each: each.created_at))

    async def create(self, ref: str, request: snapshot_api.SnapshotRequest) -> snapshot_api.Snapshot:
        """Take one. The guest stands still meanwhile. Raises PyxenError; then nothing is left of it."""
        record = self._records.changeable(ref, "take a snapshot of")
        async with self._life.registry.lock(record.uuid):
            folder = await self.take(record, request.name, quiesce=request.quiesce)
            view = await asyncio.to_thread(self._view, folder)
            self._life.tell("snapshot-created", record, snapshot=request.name)
        assert view is not None
        return view

    async def remove(self, ref: str, name: str) -> None:
        folder, description = await asyncio.to_thread(self.find, ref, name)
        async with self._life.registry.lock(description.uuid):
            self.templates.drop(folder)
            await self.waiting.drop(folder)
            await asyncio.to_thread(discard, folder)
        self._life.events.publish("snapshot-removed", name=description.domain, uuid=description.uuid, snapshot=name)

    async def forget(self, uuid: str) -> None:
        """Remove all of a domain that is no more."""
        folder = self._life.roots.snapshots / uuid
        self.templates.drop(folder)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def revert(self, ref: str, name: str, request: snapshot_api.RevertRequest) -> tuple[Record, list[str]]:
        """Take a domain back, be it running, halted or gone. Raises PyxenError; before its process ends, it goes on."""
        folder, description = await asyncio.to_thread(self.find, ref, name)
        async with self._life.registry.lock(description.uuid):
            head = await asyncio.to_thread(check, folder, description)
            record = self._life.registry.records.get(description.uuid)
            if record is None:
                self._records.check_free(head.config.name, head.config.uuid)
                record = Record(
                    uuid=description.uuid,
                    name=head.config.name,
                    config=head.config,
                    created_at=now(),
                    managed=head.managed,
                )
            warnings = await self._go_back(record, folder, description, head, paused=request.paused)
        return record, warnings

    async def finish(self, record: Record) -> None:
        """Do what is left to do of what an earlier xend was about."""
        async with self._life.registry.lock(record.uuid):
            kind, _, rest = (record.intended or "").partition(" ")
            if kind == REVERT:
                try:
                    folder, description = await asyncio.to_thread(self.find, record.uuid, rest)
                    head = await asyncio.to_thread(check, folder, description)
                    await self._go_back(record, folder, description, head, paused=False)
                except PyxenError:
                    if record.phase is Phase.BUILDING:
                        await self._life.retire(record)
                    elif record.phase is Phase.RUNNING:
                        await self._records.change(record, intended=None)
                    raise
                return
            if (live := self._life.registry.live.get(record.uuid)) is None:
                return
            self._life.log.warning("a snapshot was cut short: the domain goes on", name=record.name)
            if rest == "go-on" and live.process.stopped is None:
                await live.process.thaw()
            await self._records.change(record, intended=None)
            self._life.restored(record)  # its file systems may be frozen

    # For clones

    def find(self, ref: str, name: str) -> tuple[Path, Description]:
        """A snapshot's folder; ``ref`` may be a domain that is gone. Blocking. Raises NotFound."""
        record = self._find_record(ref)
        for folder in self._folders():
            if folder.name == name and (found := read(folder)) is not None and _is_of(found, record, ref):
                return folder, found
        self.listed(ref)
        raise NotFound(f"Domain '{ref}' has no snapshot '{name}'", hint=f"See what there is: xm snapshot list {ref}")

    async def take(self, record: Record, name: str, *, quiesce: bool = False) -> Path:
        """Take a snapshot under this name; its folder. The domain's lock is held.

        ``quiesce``: its guest's file systems are frozen in it, and go on wherever the guest does.
        """
        live = self._records.alive(record, "take a snapshot of")
        disks, quiet = writable_disks(record, live, self._life), False
        bound.check_copy(live.spec.config)
        folder = self._life.roots.snapshots / record.uuid / name
        if folder.exists():
            raise Conflict(
                f"'{record.name}' has a snapshot '{name}' already",
                hint=f"Choose another name, or remove it: xm snapshot rm {record.name} {name}",
            )
        part = folder.with_name(f".{name}.part")
        fd = await asyncio.to_thread(make, part)
        before, after = record.intended, "stay" if live.process.paused or live.process.suspended else "go-on"
        try:
            head = await saving.head_of(record, live, uuids.uuid4().hex)
            await self._records.change(record, intended=f"{SNAPSHOT} {after}")
            reached("snapshot-noted")
            if quiesce:
                await self._quiet(live)
                quiet = True
            await live.process.freeze()
            reached("snapshot-frozen")
            await saving.write_state(live, head, fd)
            reached("snapshot-written")
            await asyncio.to_thread(self._keep, part, folder, record, disks)
        except BaseException:
            await asyncio.to_thread(discard, part)
            try:
                await saving.go_on(self._life, record, live, before, after)
                if quiet:
                    await self._loud(live)
            except PyxenError as error:  # what went wrong first is what the caller hears of
                self._life.log.error("the domain doesn't go on", name=record.name, error=str(error))
            raise
        finally:
            os.close(fd)
        try:
            await saving.go_on(self._life, record, live, before, after)
        except PyxenError as error:
            raise EngineError(
                f"the snapshot '{name}' is taken, but '{record.name}' doesn't go on: {error.message}",
                hint=f"Try: xm unpause {record.name}",
            ) from error
        if quiet:
            await self._loud(live)
        return folder

    # Parts

    async def _quiet(self, live: Live) -> None:
        """Have the guest freeze its file systems. Raises PyxenError; then none is."""
        assert self.agents is not None
        try:
            agent = await self.agents.of(live, _AGENT_S, AgentKind.QEMU)
            try:
                await agent.freeze_files()
            except BaseException:
                with contextlib.suppress(PyxenError):  # some may be
                    await agent.thaw_files()
                raise
        except Unsupported as error:
            raise Unsupported(
                f"the file systems of '{live.spec.config.name}' can't be frozen: {error.message}",
                hint="QEMU's guest agent in it can (Debian's package qemu-guest-agent); or leave --quiesce out: a "
                "snapshot's memory and disks are of one moment anyway.",
            ) from error

    async def _loud(self, live: Live) -> None:
        """Have the guest's file systems go on. Raises EngineError."""
        assert self.agents is not None
        try:
            await (await self.agents.of(live, _AGENT_S, AgentKind.QEMU)).thaw_files()
        except PyxenError as error:
            raise EngineError(
                f"the file systems of '{live.spec.config.name}' stay frozen: {error.message}",
                hint="In the guest: fsfreeze -u DIR",
            ) from error

    def _keep(self, part: Path, folder: Path, record: Record, disks: list[DiskCopy]) -> None:
        """Copy the disks, describe it all, and give it its name."""
        kept = []
        for disk in disks:
            self._life.images.follow(Path(disk.path), folder / disk.vdev)
            length = copy_disk(Path(disk.path), part / disk.vdev, disk.format)
            kept.append(msgspec.structs.replace(disk, length=length))
        own = variables(record.name, self._life.roots)
        if own.exists():
            copy_disk(own, part / VARIABLES, "raw")
        description = Description(
            version=VERSION,
            name=folder.name,
            domain=record.name,
            uuid=record.uuid,
            created_at=now(),
            disks=tuple(kept),
            variables=own.exists(),
        )
        write_file(part / DESCRIPTION, [msgspec.json.encode(description)], mode=0o600)
        try:
            sync_folder(part)
            reached("snapshot-copied")
            part.rename(folder)
            sync_folder(folder.parent)
            reached("snapshot-named")
        except OSError as error:
            raise ResourceExhausted(f"cannot write {folder}: {error.strerror}") from error

    async def _go_back(
        self, record: Record, folder: Path, description: Description, head: saved.Head, *, paused: bool
    ) -> list[str]:
        moves = moves_back(record, folder, description, head, self._life)
        before = record.intended
        if record.phase is Phase.RUNNING:
            await self._records.change(record, intended=f"{REVERT} {description.name}")
        try:
            reached("revert-noted")
            await asyncio.to_thread(copy_beside, moves)
            reached("revert-copied")
            await self._life.take_down(record, f"{REVERT} {description.name}")
            reached("revert-down")
        except BaseException:
            if record.phase is Phase.RUNNING:
                with contextlib.suppress(PyxenError):
                    await self._records.change(record, intended=before)
            raise
        try:
            await asyncio.to_thread(put_in_place, moves)
            reached("revert-placed")
        except BaseException:
            await self._life.retire(record)
            raise
        config = msgspec.structs.replace(head.config, name=record.name)
        async with saving.reading(folder / STATE) as state:
            warnings = await self._life.build(
                record, Origin.RESTART, paused=paused, config=config, state=state, head=head
            )
        self._life.tell("domain-reverted", record, snapshot=description.name)
        return warnings

    def _find_record(self, ref: str) -> Record | None:
        try:
            return self._life.registry.find(ref)
        except NotFound:
            return None

    def _folders(self) -> list[Path]:
        """Those of all snapshots that are whole."""
        return [each for each in self._life.roots.snapshots.glob("*/*") if not each.name.startswith(".")]

    def _view(self, folder: Path) -> snapshot_api.Snapshot | None:
        if (found := read(folder)) is None:
            return None
        record = self._life.registry.records.get(found.uuid)
        size = sum(each.stat().st_blocks * 512 for each in folder.iterdir())
        return snapshot_api.Snapshot(
            name=found.name,
            domain=record.name if record else found.domain,
            uuid=found.uuid,
            created_at=found.created_at,
            disks=[disk.vdev for disk in found.disks],
            disk_bytes=size,
        )


def _is_of(found: Description | snapshot_api.Snapshot, record: Record | None, ref: str) -> bool:
    """Is it of the domain that ``ref`` is, or was?"""
    return found.uuid == record.uuid if record else ref in (found.domain, found.uuid)
