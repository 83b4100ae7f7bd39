"""The events file: what each event means, and that nothing in the file can upset the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxen.api import ShutdownReason
from pyxen.engine.contract import Stopped
from pyxen.engine.events import EventLog, Fate, parse_line

READY = b'{"return": {}, "id": "ready"}\n'
POWEROFF = (
    b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",'
    b' "data": {"guest": true, "reason": "guest-shutdown"}}\n'
)


def fate_of(*messages: object) -> Fate:
    fate = Fate()
    for message in messages:
        parsed = parse_line(json.dumps(message).encode())
        if parsed is not None:
            fate.take(parsed)
    return fate


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("guest-shutdown", ShutdownReason.POWEROFF),
        ("guest-reset", ShutdownReason.REBOOT),
        ("guest-panic", ShutdownReason.CRASH),
        ("host-signal", ShutdownReason.DESTROYED),
        ("host-qmp-quit", ShutdownReason.DESTROYED),
        ("host-error", ShutdownReason.FAILED),
    ],
)
def test_reasons_of_a_shutdown(said: str, reason: ShutdownReason) -> None:
    assert fate_of({"event": "SHUTDOWN", "data": {"guest": True, "reason": said}}).stopped == Stopped(reason)


def test_the_first_end_counts() -> None:
    fate = fate_of(
        {"event": "GUEST_PANICKED", "data": {"action": "pause"}},
        {"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-signal"}},
    )
    assert fate.stopped == Stopped(ShutdownReason.CRASH)


def test_a_crash_that_was_not_stopped_at_is_a_crash_all_the_same() -> None:
    """A kernel that has told pvpanic of its panic and then resets has crashed, not rebooted."""
    fate = fate_of({"event": "GUEST_PANICKED"}, {"event": "SHUTDOWN", "data": {"reason": "guest-reset"}})
    assert fate.stopped == Stopped(ShutdownReason.CRASH)


def test_pausing() -> None:
    assert fate_of().paused
    assert not fate_of({"event": "RESUME"}).paused
    assert fate_of({"event": "RESUME"}, {"event": "STOP"}).paused
    stopped = {"event": "STOP", "timestamp": {"seconds": 7, "microseconds": 250_000}}
    assert (fate_of({"event": "STOP"}).since, fate_of(stopped).since) == (None, 7.25)


def test_an_answer_is_readiness_and_a_refusal_is_not() -> None:
    assert fate_of({"return": {}, "id": "ready"}).ready
    assert not fate_of({"return": {}, "id": "cont"}).ready
    refused = fate_of({"id": "ready", "error": {"class": "GenericError", "desc": "no"}})
    assert not refused.ready and refused.errors == ["no"]
    assert fate_of({"id": "cont", "error": {"class": "GenericError", "desc": "never"}}).errors == ["never"]


def test_lines_that_arrive_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.touch()
    log = EventLog(path)
    with path.open("ab", buffering=0) as file:
        file.write(READY[:10])
        assert not log.read().ready
        file.write(READY[10:] + POWEROFF[:-1])
        assert log.read().ready
        assert log.fate.stopped is None
        file.write(b"\n")
    assert log.read().stopped == Stopped(ShutdownReason.POWEROFF)
    log.close()
    assert log.read().ready


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200).map(lambda line: line.replace(b"\n", b"")),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["event", "data", "id", "error", "reason", "guest"]), inner)
                ),
                max_leaves=8,
            ).map(lambda value: json.dumps(value).encode()),
            st.just(b"[" * 100_000),
        )
    ),
    st.integers(min_value=1, max_value=64),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_neither_raises_nor_hides_what_follows(tmp_path: Path, lines: list[bytes], piece: int) -> None:
    path = tmp_path / "events"
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(b"")
    log = EventLog(path)
    with path.open("ab", buffering=0) as file:
        file.write(data[:piece])
        log.read()
        file.write(data[piece:] + READY + POWEROFF)
        fate = log.read()
    log.close()
    assert fate.ready
    assert fate.stopped is not None
