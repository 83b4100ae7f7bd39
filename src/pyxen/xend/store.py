"""What xend remembers across its own death: one SQLite file.

The table ``domain`` holds a row for each domain that exists, running or defined. Every step of a domain's life is one
transaction, made *before* the step is taken where it must be undone after a crash (``building``), and after it where
it need only be noticed. Rows are small and few, so xend holds them all in memory and reads the file only at its start.

All access is on one thread of this object's own; callers await it. What a caller was told has happened is on the disk,
but for the starts of domains that a power cut would end for good anyway: those wait for no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig, encode
from pyxen.errors import PyxenError, ResourceExhausted

T = TypeVar("T")

# Each entry takes the schema from its index to the next; PRAGMA user_version counts those done.
MIGRATIONS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE domain (
        uuid TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        managed INTEGER NOT NULL,
        config TEXT NOT NULL,
        phase TEXT NOT NULL,
        origin TEXT,
        domid INTEGER UNIQUE,
        engine TEXT,
        created_at REAL NOT NULL,
        started_at REAL,
        intended TEXT,
        restart_count INTEGER NOT NULL DEFAULT 0,
        restarted_at REAL,
        last_reason TEXT
    ) STRICT;
    """,
)


class Phase(StrEnum):
    """Where a domain is in its life, as xend must know it after a crash of its own."""

    HALTED = "halted"
    BUILDING = "building"
    RUNNING = "running"
    PRESERVED = "preserved"


class Origin(StrEnum):
    """What a half-made domain was made for; decides if recovery undoes or repeats it."""

    CREATE = "create"
    START = "start"
    RESTART = "restart"


@dataclass(slots=True)
class Record:
    """One row of ``domain``."""

    uuid: str
    name: str
    config: DomainConfig
    created_at: float
    managed: bool = False
    phase: Phase = Phase.HALTED
    origin: Origin | None = None
    domid: int | None = None
    engine: str | None = None
    started_at: float | None = None
    intended: str | None = None
    """What somebody asked of the running guest: poweroff, reboot, halt, destroy."""
    restart_count: int = 0
    restarted_at: float | None = None
    last_reason: ShutdownReason | None = None


_ROOM_PAGES = 128
_COLUMNS = (
    "uuid", "name", "managed", "config", "phase", "origin", "domid", "engine",
    "created_at", "started_at", "intended", "restart_count", "restarted_at", "last_reason",
)  # fmt: skip
_UPSERT = (
    f"INSERT INTO domain ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT (uuid) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _COLUMNS[1:])}"
)


class Store:
    """The database, opened and brought up to date by :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        await self._run(lambda: self._db.close())
        self._thread.shutdown()

    async def records(self) -> list[Record]:
        rows = await self._run(lambda: self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM domain").fetchall())
        return [_record(row) for row in rows]

    async def save(self, *records: Record, lasting: bool = True, meta: Mapping[str, str] | None = None) -> None:
        """Write the rows as they are now and values to keep, all or none. Unless ``lasting``, a power cut may undo
        that.
        """
        rows = [_row(record) for record in records]

        def write() -> None:
            with self._written(lasting=lasting):
                self._db.executemany(_UPSERT, rows)
                for key, value in (meta or {}).items():
                    self._set_meta(key, value)

        await self._run(write)

    async def delete(self, uuid: str) -> None:
        def write() -> None:
            with self._db:
                self._db.execute("DELETE FROM domain WHERE uuid = ?", (uuid,))

        await self._run(write)

    async def begin_build(self, record: Record, *, domid: int | None = None, also: tuple[Record, ...] = ()) -> int:
        """Give ``record`` a domain id, a new one or that of ``take_domid``, and write it as building, in one
        transaction; the id.

        A power cut may undo that for a domain that isn't managed, and would end it anyway.
        """
        others = [_row(each) for each in also]

        def write() -> int:
            with self._written(lasting=bool(also) or record.managed):
                self._db.executemany(_UPSERT, others)
                record.domid, record.phase = domid or self._next_domid(), Phase.BUILDING
                self._db.execute(_UPSERT, _row(record))
            return record.domid

        return await self._run(write)

    async def take_domid(self) -> int:
        """A domain id that no domain has, or will be given."""

        def write() -> int:
            with self._written(lasting=False):
                return self._next_domid()

        return await self._run(write)

    async def meta(self, key: str) -> str | None:
        return await self._run(lambda: self._meta(key))

    async def set_meta(self, key: str, value: str | None) -> None:
        """Keep a value, or with None no longer keep one."""

        def write() -> None:
            with self._db:
                if value is None:
                    self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
                else:
                    self._set_meta(key, value)

        await self._run(write)

    @contextlib.contextmanager
    def _written(self, *, lasting: bool) -> Iterator[None]:
        """A transaction, which is on the disk at its end if it is to be ``lasting``; else SIGKILL can't undo it."""
        self._db.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
        try:
            with self._db:
                yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._database is not None, "the store is not open"
        return self._database

    async def _run(self, step: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, step)
        except sqlite3.OperationalError as error:
            raise ResourceExhausted(
                f"cannot write {self._path}: {error}",
                hint=f"Is the disk full or read-only? See: df -h {self._path.parent}",
            ) from error

    def _open(self) -> None:
        try:
            # Descriptions can hold secrets. The files beside it get its mode from SQLite.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise PyxenError(f"{self._path} cannot be used: {error.strerror}") from error
        database = sqlite3.connect(self._path, isolation_level="IMMEDIATE")
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise PyxenError(
                    f"{self._path} was written by a newer pyxen (schema {version}, this one knows {len(MIGRATIONS)})",
                    hint="Upgrade pyxen, or set PYXEN_ROOT to another folder.",
                )
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
            with contextlib.suppress(sqlite3.OperationalError):
                _make_room(database)
        except sqlite3.DatabaseError as error:
            database.close()
            raise PyxenError(
                f"{self._path} cannot be used: {error}", hint="Move it away to start with an empty one."
            ) from error
        except BaseException:
            database.close()
            raise
        self._database = database

    def _next_domid(self) -> int:
        domid = int(self._meta("next_domid") or 1)
        self._set_meta("next_domid", str(domid + 1))
        return domid

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )


def _make_room(database: sqlite3.Connection) -> None:
    """Take disk space now for what must be written when the disk is full: the ends of domains, above all.

    The pages of the dropped table stay with the database; those of the log are used over and over, since a
    checkpoint comes long before its end. Raises OperationalError if there is no room; all works without it too.
    """
    database.executescript(
        f"PRAGMA wal_autocheckpoint = {_ROOM_PAGES // 4};"
        f"CREATE TABLE room AS SELECT zeroblob({_ROOM_PAGES} * 4096) AS filler;"
        "DROP TABLE room;"
    )


def _row(record: Record) -> tuple[object, ...]:
    values = {column: getattr(record, column) for column in _COLUMNS}
    values["managed"] = int(record.managed)
    values["config"] = encode(record.config).decode()
    return tuple(str(value) if isinstance(value, StrEnum) else value for value in values.values())


def _record(row: tuple[object, ...]) -> Record:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["config"] = msgspec.json.decode(str(values["config"]), type=DomainConfig)
    return msgspec.convert(values, Record, strict=False)
