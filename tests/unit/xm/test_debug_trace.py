"""xm debug-trace: lines, the summary, what is chosen, and how it ends."""

from __future__ import annotations

import json

import pytest

from pyxen.api import TraceRecord

from .conftest import Xm
from .fake import FakeClient

POLL = TraceRecord(
    "hypercall", "sched_op", "poll", 0.000123, 0, {"ports": [3], "nr_ports": 1, "timeout": 5}, result=0, us=1500.0
)
ALLOC = TraceRecord(
    "hypercall", "event_channel_op", "alloc_unbound", 0.5, 1, {"dom": "self"}, {"port": 7}, result=0, us=12.34
)
REFUSED = TraceRecord("hypercall", "memory_op", "exchange", 1.25, 0, result=-38, error="ENOSYS", us=2.0)
PORT = TraceRecord(
    "port", "in", time_s=2.0, vcpu=0, args={"port": "0x71 rtc", "size": 1}, out={"value": "0xff"}, us=3.0
)
WRITE = TraceRecord("xenstore", "write", time_s=2.5, args={"path": "data/a", "value": "x y"}, us=40.0)
END = TraceRecord("end", "poweroff")
ALL: list[TraceRecord | type[BaseException]] = [POLL, ALLOC, REFUSED, PORT, TraceRecord("lost", count=1234), WRITE, END]


def test_lines_are_in_columns(xm: Xm, fake: FakeClient) -> None:
    fake.traced = ALL
    done = xm("debug-trace", "web")
    assert done.status == 0
    assert done.out.splitlines() == [
        "     Time(s) VCPU   Cost(us) What",
        "    0.000123    0     1500.0 sched_op.poll(ports=[3], nr_ports=1, timeout=5) = 0",
        "    0.500000    1       12.3 event_channel_op.alloc_unbound(dom=self) -> port=7 = 0",
        "    1.250000    0        2.0 memory_op.exchange() = -ENOSYS",
        "    2.000000    0        3.0 port.in(port=0x71 rtc, size=1) -> value=0xff",
        "                             … 1234 lost",
        '    2.500000            40.0 xenstore.write(path=data/a, value="x y")',
    ]
    assert done.err == "Domain web has ended (poweroff)\n"


def test_the_summary_counts_and_weighs(xm: Xm, fake: FakeClient) -> None:
    fake.traced = [POLL, POLL, ALLOC, TraceRecord("event", "raise"), TraceRecord("lost", count=5), END]
    done = xm("debug-trace", "web", "--summary")
    assert done.out.splitlines() == [
        "What                              Count    Total(us)   Mean(us)    Max(us)  Share",
        "sched_op.poll                         2       3000.0     1500.0     1500.0  99.6%",
        "event_channel_op.alloc_unbound        1         12.3       12.3       12.3   0.4%",
        "event.raise                           1          0.0        0.0        0.0   0.0%",
        "5 more came too fast to be seen, and are not counted.",
    ]
    found = json.loads(xm("debug-trace", "web", "-s", "--format", "json").out)
    assert found["lost"] == 5
    assert found["costs"][0]["what"] == "sched_op.poll"


def test_ctrl_c_ends_it_with_a_summary(xm: Xm, fake: FakeClient) -> None:
    fake.traced = [POLL, KeyboardInterrupt]
    done = xm("debug-trace", "web")
    assert done.status == 0
    assert len(done.out.splitlines()) == 2
    assert "sched_op.poll" in done.err
    assert xm("debug-trace", "web", "--summary").out.startswith("What ")


def test_json_is_one_record_a_line(xm: Xm, fake: FakeClient) -> None:
    fake.traced = ALL
    found = [json.loads(line) for line in xm("debug-trace", "web", "--format", "json").out.splitlines()]
    assert [each["kind"] for each in found] == [each.kind for each in ALL if isinstance(each, TraceRecord)]
    assert found[1]["out"] == {"port": 7}


@pytest.mark.parametrize(
    ("words", "asked", "shown"),
    [
        ([], [], 5),
        (["port"], ["port"], 1),
        (["sched_op"], ["hypercall"], 1),
        (["event_channel_op.alloc_unbound", "xenstore.write"], ["hypercall", "xenstore"], 2),
        (["sched_op.block"], ["hypercall"], 0),
    ],
)
def test_only_what_was_asked_for(xm: Xm, fake: FakeClient, words: list[str], asked: list[str], shown: int) -> None:
    fake.traced = ALL
    done = xm("debug-trace", "web", *(part for word in words for part in ("--only", word)))
    assert fake.orders == [("trace", "web", asked)]
    assert len([line for line in done.out.splitlines()[1:] if "lost" not in line]) == shown


def test_a_count_of_records(xm: Xm, fake: FakeClient) -> None:
    fake.traced = [TraceRecord("lost", count=9), POLL, ALLOC, REFUSED]
    done = xm("debug-trace", "web", "--count", "2", "--format", "json")
    assert [json.loads(line)["kind"] for line in done.out.splitlines()] == ["lost", "hypercall", "hypercall"]


def test_wrong_calls(xm: Xm, fake: FakeClient) -> None:
    assert xm("debug-trace", "web", "--only", "nonsense").status == 2
    assert xm("debug-trace", "nobody").status == 3
