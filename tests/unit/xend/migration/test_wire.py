"""Frames and messages, whatever comes over the connection; certificates."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.errors import Conflict, InvalidRequest, NotFound
from pyxen.xend.migration import wire
from pyxen.xend.migration.peers import Peers


class Nowhere:
    """A writer that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written += bytes(data)

    async def drain(self) -> None: ...


def receive(data: bytes) -> list[wire.Message | bytes]:
    """All frames in ``data``; raises what the end of it makes of the last."""
    found: list[wire.Message | bytes] = []

    async def go() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        link = wire.Link(reader, Nowhere())  # type: ignore[arg-type]
        while not reader.at_eof():
            found.append(await link.receive())

    asyncio.run(go())
    return found


def written(*messages: wire.Message | bytes) -> bytes:
    writer = Nowhere()

    async def go() -> None:
        link = wire.Link(asyncio.StreamReader(), writer)  # type: ignore[arg-type]
        for message in messages:
            await (link.send_data(message) if isinstance(message, bytes) else link.send(message))

    asyncio.run(go())
    return writer.written


def test_what_is_sent_is_received() -> None:
    sent: list[wire.Message | bytes] = [wire.Question(1, "a"), b"state" * 1000, wire.End(5000), wire.Verdict(True)]
    assert receive(written(*sent)) == sent


@given(st.binary(max_size=200))
def test_garbage_is_a_broken_connection(data: bytes) -> None:
    try:
        found = receive(data)
    except wire.Broken:
        return
    assert all(isinstance(each, bytes | msgspec.Struct) for each in found)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_message_with_a_byte_changed_never_does_more_than_break(where: int, change: int) -> None:
    whole = bytearray(written(wire.Refused(["name is taken"]), wire.Loaded()))
    whole[where % len(whole)] ^= change
    with contextlib.suppress(wire.Broken):
        receive(bytes(whole))


def test_a_frame_that_is_too_long_is_not_waited_for() -> None:
    with pytest.raises(wire.Broken, match="does not speak"):
        receive(b"d\xff\xff\xff\xff")


def test_a_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers")
    own = peers.own()
    assert own.startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in own
    assert Peers(tmp_path / "peers").own() == own
    assert stat.S_IMODE((tmp_path / "peers" / "own.pem").stat().st_mode) == 0o600


def test_peers_come_and_go(tmp_path: Path) -> None:
    mine, theirs, strange = (Peers(tmp_path / name) for name in "abc")
    with pytest.raises(Conflict, match="no other xend is trusted"):
        mine.context(server=False)
    added = mine.add("b", "some words\n" + theirs.own())
    assert mine.list().peers == [added]
    assert added.fingerprint == theirs.list().fingerprint
    assert mine.add("b", theirs.own()) == added
    with pytest.raises(Conflict, match="another certificate"):
        mine.add("b", strange.own())
    assert mine.context(server=False).get_ca_certs(binary_form=True)
    mine.remove("b")
    with pytest.raises(NotFound):
        mine.remove("b")
    with pytest.raises(NotFound):
        mine.remove("../own")


@pytest.mark.parametrize("name", ["", "../b", "a/b", ".b", "x" * 65, "b\n"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    peers = Peers(tmp_path)
    with pytest.raises(InvalidRequest, match="can't be a peer's name"):
        peers.add(name, peers.own())


@pytest.mark.parametrize(
    "text", ["", "PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", bytes(range(50)).hex()]
)
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match="certificate"):
        Peers(tmp_path).add("b", text)
