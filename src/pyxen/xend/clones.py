"""Clones: new domains that go on from where another one is, or from a snapshot of it, with disks of their own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid as uuids
from pathlib import Path

import msgspec

from pyxen import snapshot_api
from pyxen.config.model import Disk, DiskFormat, DomainConfig, DomainType
from pyxen.engine.contract import Waking
from pyxen.engine.template import Template
from pyxen.errors import PyxenError
from pyxen.xend import saved, saving
from pyxen.xend.belongings import root_layer, variables
from pyxen.xend.copies import copy_disk
from pyxen.xend.life import Life
from pyxen.xend.prepare import make_mac
from pyxen.xend.registry import now
from pyxen.xend.snapshot_files import DESCRIPTION, STATE, VARIABLES, Description, check, discard
from pyxen.xend.snapshots import Snapshots
from pyxen.xend.steps import reached
from pyxen.xend.store import Origin, Record
from pyxen.xend.waiting import PREFIX, Waiter, become, start
from pyxen.xend.waking import waking_of

_SAME = (
    "unless an agent in its guest is told by xend, it goes on with its source's host name and clock, "
    "and with the random numbers that it has ahead"
)
_MOST_COPIED = 256 << 20
"""Bytes on the disks of a clone that is started before anybody wants it."""
_OFFLINE = "its vifs are not on their bridges before the agent in its guest has given it its own MACs"


class Clones:
    """Makes domains out of others."""

    def __init__(self, life: Life, snapshots: Snapshots) -> None:
        self._life = life
        self._snapshots = snapshots

    async def clone(self, ref: str, request: snapshot_api.CloneRequest) -> tuple[Record, list[str]]:
        """Start a domain from a snapshot, or (without one) from what the source is now; the source goes on.

        Raises PyxenError; then nothing is left of the clone.
        """
        self._life.records.check_free(request.name, None)
        if request.snapshot is not None:
            folder, description = await asyncio.to_thread(self._snapshots.find, ref, request.snapshot)
            async with self._life.registry.lock(description.uuid):
                return await self._start(folder, description, request)
        source = self._life.records.changeable(ref, "clone")
        async with self._life.registry.lock(source.uuid):
            folder = await self._snapshots.take(source, f".clone-{uuids.uuid4().hex[:8]}")
            try:
                description = msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
                return await self._start(folder, description, request)
            finally:
                await asyncio.to_thread(discard, folder)

    async def _start(
        self, folder: Path, description: Description, request: snapshot_api.CloneRequest
    ) -> tuple[Record, list[str]]:
        waiting = self._snapshots.waiting
        if request.snapshot is not None and (waiter := await waiting.take(folder)) is not None:
            record, warnings = await self._take(waiter, folder, description, request)
            self._snapshots.templates.still_used(folder)
        else:
            record, warnings = await self._start_new(folder, description, request)
        if request.managed:
            try:
                await self._life.records.change(record, managed=True)
            except PyxenError as error:
                warnings.append(f"it runs, but is not managed: {error.message}")
        self._life.tell("domain-cloned", record, source=description.domain)
        if request.snapshot is not None:
            waiting.soon(folder, functools.partial(self._make, folder, description))
        return record, warnings

    async def _make(self, folder: Path, description: Description) -> Waiter | None:
        """Start one that waits to be a clone; None where none can. Raises PyxenError; then nothing is left of it."""
        head = await asyncio.to_thread(check, folder, description, head_only=True)
        template = self._snapshots.templates.find(folder)
        if template is None or not _may_wait(head.config) or _size(folder, description) > _MOST_COPIED:
            return None
        domid = await self._life.store.take_domid()
        reached("wait-noted")
        name = f"{PREFIX}{domid}"
        files = self._files(folder, description, head.config.image, name)
        config, warnings = _described(head.config, description, name, dict(_targets(description, files)))
        waking = _waking(config, _macs(head.config, config))
        made: list[Path] = []
        try:
            await asyncio.to_thread(self._copy, files, made)
            reached("wait-copied")
            waiter = await start(self._life, config, domid, made, head, template, waking)
        except BaseException:
            for path in made:
                path.unlink(missing_ok=True)
            raise
        waiter.warnings[:0] = warnings
        return waiter

    async def _take(
        self, waiter: Waiter, folder: Path, description: Description, request: snapshot_api.CloneRequest
    ) -> tuple[Record, list[str]]:
        """Make a clone of what has waited to be one."""
        try:
            self._life.records.check_free(request.name, waiter.spec.uuid)
        except PyxenError:
            await self._snapshots.waiting.end(waiter)
            raise
        files = self._files(folder, description, waiter.config.image, request.name)
        moved = dict(zip(waiter.files, (target for _, target, _ in files), strict=True))
        disks = tuple(
            msgspec.structs.replace(disk, target=str(moved.get(Path(disk.target), disk.target)))
            for disk in waiter.config.disk
        )
        config = msgspec.structs.replace(waiter.config, name=request.name, disk=disks)
        record = Record(uuid=waiter.spec.uuid, name=config.name, config=config, created_at=now())
        waking = _waking(config, waiter.spec.waking.macs if waiter.spec.waking else {})
        async with self._life.registry.lock(record.uuid):
            await become(self._life, waiter, record, moved, waking, paused=request.paused)
        return record, waiter.warnings

    async def _start_new(
        self, folder: Path, description: Description, request: snapshot_api.CloneRequest
    ) -> tuple[Record, list[str]]:
        ready = folder in self._snapshots.templates
        head = await asyncio.to_thread(check, folder, description, head_only=ready)
        files = self._files(folder, description, head.config.image, request.name)
        config, warnings = _described(head.config, description, request.name, dict(_targets(description, files)))
        self._life.records.check_free(config.name, config.uuid)
        assert config.uuid is not None
        # Not managed before it runs: one that can't be started must leave nothing.
        record = Record(uuid=config.uuid, name=config.name, config=config, created_at=now())
        self._life.registry.records[record.uuid] = record
        made: list[Path] = []
        async with self._life.registry.lock(record.uuid):
            try:
                await asyncio.to_thread(self._copy, files, made)
                if request.snapshot is None or head.config.hugepages:  # a template has no huge pages
                    warnings += await self._build(record, folder, head, None, paused=request.paused)
                else:
                    warnings += await self._build_shared(record, folder, head, paused=request.paused)
            except BaseException:
                self._life.registry.forget(record.uuid)
                for path in made:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                raise
        return record, warnings

    async def _build_shared(self, record: Record, folder: Path, head: saved.Head, *, paused: bool) -> list[str]:
        """From a snapshot, which may be cloned again: so its clones share its memory."""
        config, templates = head.config, self._snapshots.templates
        template = templates.get(folder, max(config.memory, config.maxmem or 0))
        try:
            return await self._build(record, folder, head, template, paused=paused)
        finally:
            if template.full:
                templates.keep(folder, template)
            else:
                template.close()

    async def _build(
        self, record: Record, folder: Path, head: saved.Head, template: Template | None, *, paused: bool
    ) -> list[str]:
        build = functools.partial(
            self._life.build,
            record,
            Origin.CREATE,
            paused=paused,
            head=head,
            template=template,
            waking=_waking(record.config, _macs(head.config, record.config)),
        )
        if template is not None and template.full:
            return await build()
        async with saving.reading(folder / STATE) as state:
            return await build(state=state)

    def _files(
        self, folder: Path, description: Description, image: str | None, name: str
    ) -> list[tuple[Path, Path, str]]:
        """Each copy, the file that the clone gets of it, and its format; the disks first, in their order."""
        roots = self._life.roots
        files = []
        for disk in description.disks:
            own = roots.disks / f"{name}-{disk.vdev}.{'qcow2' if disk.format == 'qcow2' else 'img'}"
            target = root_layer(name, image, roots) if disk.root and image is not None else own
            files.append((folder / disk.vdev, target, disk.format))
        if description.variables:
            files.append((folder / VARIABLES, variables(name, roots), "raw"))
        return files

    def _copy(self, files: list[tuple[Path, Path, str]], made: list[Path]) -> None:
        for copy, target, format in files:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._life.images.follow(copy, target)
            copy_disk(copy, target, format)
            made.append(target)


def _may_wait(config: DomainConfig) -> bool:
    """Can a clone be started before its name is known? A TPM's state goes by that, and a screen shows at a port."""
    return not (config.type is DomainType.HVM and (config.vnc or config.tpm))


def _size(folder: Path, description: Description) -> int:
    """Bytes that the copies of the disks take."""
    return sum((folder / disk.vdev).stat().st_blocks * 512 for disk in description.disks)


def _macs(before: DomainConfig, after: DomainConfig) -> dict[str, str]:
    """The new addresses of vifs on bridges, by the old ones."""
    macs = {old.mac: new.mac for old, new in zip(before.vif, after.vif, strict=True) if old.bridge}
    return {old: new for old, new in macs.items() if old and new}


def _waking(config: DomainConfig, macs: dict[str, str]) -> Waking:
    """What the guest is to be told of its new description."""
    named = config.image is not None and "hostname=" not in f"{config.root} {config.extra} {config.cmdline}"
    return waking_of(config.name, named=named, macs=macs)


def _targets(description: Description, files: list[tuple[Path, Path, str]]) -> list[tuple[str, tuple[str, str]]]:
    return [
        (disk.vdev, (str(target), format))
        for disk, (_, target, format) in zip(description.disks, files, strict=False)
        if not disk.root
    ]


def _described(
    config: DomainConfig, description: Description, name: str, targets: dict[str, tuple[str, str]]
) -> tuple[DomainConfig, list[str]]:
    """The clone's own description, and what it can't have of its source's."""
    warnings = [_SAME]
    if any(vif.bridge for vif in config.vif):
        warnings.append(_OFFLINE)
    if any(vif.forward for vif in config.vif):
        warnings.append("forward=… is left out: these ports are its source's")

    def disk(each: Disk) -> Disk:
        if each.vdev not in targets:
            return each
        target, format = targets[each.vdev]
        return msgspec.structs.replace(each, target=target, format=DiskFormat(format))

    changes = msgspec.structs.replace(
        config,
        name=name,
        uuid=str(uuids.uuid4()),
        vif=tuple(msgspec.structs.replace(vif, mac=make_mac(), forward=(), vifname=None) for vif in config.vif),
        disk=tuple(map(disk, config.disk)),
        vncdisplay=None,
    )
    return changes, warnings
