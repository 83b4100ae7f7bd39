"""The store: what was written is there again, ids only rise, and a wrong file is an error with a next step."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pyxen.api import ShutdownReason
from pyxen.config.model import DomainConfig, Vif
from pyxen.errors import PyxenError
from pyxen.xend.store import MIGRATIONS, Origin, Phase, Record, Store

pytestmark = pytest.mark.anyio

FIRST = "11111111-1111-4111-8111-111111111111"
SECOND = "22222222-2222-4222-8222-222222222222"


def make_record(uuid: str = FIRST, name: str = "web") -> Record:
    config = DomainConfig(name=name, uuid=uuid, kernel="/vmlinuz", vif=(Vif(mac="00:16:3e:00:00:01"),))
    return Record(uuid=uuid, name=name, config=config, created_at=12.5)


async def open_store(path: Path) -> Store:
    store = Store(path / "xend.db")
    await store.open()
    return store


async def test_a_saved_record_is_the_same_after_opening_again(tmp_path: Path) -> None:
    record = make_record()
    record.phase, record.origin, record.last_reason = Phase.BUILDING, Origin.RESTART, ShutdownReason.CRASH
    record.managed, record.restarted_at = True, 99.25
    store = await open_store(tmp_path)
    await store.save(record)
    await store.close()
    again = await open_store(tmp_path)
    assert await again.records() == [record]
    await again.close()


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.save(make_record())
    assert {path.name for path in tmp_path.iterdir()} == {"xend.db", "xend.db-wal", "xend.db-shm"}
    assert not any(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())
    await store.close()


async def test_ids_rise_and_are_never_reused(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    first, second = make_record(), make_record(SECOND, "db")
    assert await store.begin_build(first) == 1
    await store.delete(first.uuid)
    assert await store.begin_build(second) == 2
    await store.close()
    store = await open_store(tmp_path)
    assert await store.begin_build(make_record()) == 3
    assert (await store.records())[0].phase is Phase.BUILDING
    await store.close()


async def test_a_name_is_taken_once(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    await store.save(make_record())
    with pytest.raises(sqlite3.IntegrityError):
        await store.save(make_record(SECOND))
    assert [record.uuid for record in await store.records()] == [FIRST]
    await store.close()


async def test_saving_several_is_all_or_none(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with pytest.raises(sqlite3.IntegrityError):
        await store.save(make_record(), make_record(SECOND))
    assert await store.records() == []
    await store.close()


async def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "xend.db")
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    store = Store(tmp_path / "xend.db")
    with pytest.raises(PyxenError, match="newer pyxen") as caught:
        await store.open()
    assert caught.value.hint


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "xend.db").write_bytes(b"not a database" * 100)
    with pytest.raises(PyxenError, match=r"xend\.db cannot be used"):
        await Store(tmp_path / "xend.db").open()
