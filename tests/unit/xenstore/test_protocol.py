"""The protocol, message by message, as domain 0 and a guest see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi.xs_wire import HEADER, PAYLOAD_MAX, Error, Op
from pyxen.xenstore.connection import Connection
from pyxen.xenstore.errors import ProtocolError, XsError
from pyxen.xenstore.quota import Quota
from pyxen.xenstore.store import Store
from tests.unit.xenstore.talk import Party, guest_store


def refused(action: Callable[[], object]) -> Error:
    with pytest.raises(XsError) as caught:
        action()
    return caught.value.error


def test_the_header_is_sixteen_bytes() -> None:
    assert HEADER.size == 16


def test_a_value_is_read_back_and_parents_appear() -> None:
    tools = Party(Store(), 0)
    tools.write("/a/b/c", b"\x00binary\xff")
    assert tools.read("/a/b/c") == b"\x00binary\xff"
    assert tools.read("/a/b") == b""
    assert tools.names("/a") == ["b"]
    tools.rm("/a/b")
    assert refused(lambda: tools.read("/a/b/c")) is Error.ENOENT
    tools.rm("/a/b")
    assert refused(lambda: tools.rm("/a/b/c")) is Error.ENOENT
    assert refused(lambda: tools.rm("/")) is Error.EINVAL


@pytest.mark.parametrize("path", ["", "//a", "/a/", "/a//b", "/a b", "/ä", "@home", "/" + "x" * 3072, "y" * 2049])
def test_a_bad_path_is_refused(path: str) -> None:
    tools = Party(Store(), 0)
    assert refused(lambda: tools.write(path, b"")) is Error.EINVAL


def test_paths_up_to_the_limit_are_right() -> None:
    tools = Party(Store(), 0)
    deep = "/a" * 1536
    tools.write(deep, b"x")
    assert tools.read(deep) == b"x"
    tools.store.introduce(3)
    tools.store.release(3)
    tools.rm("/a")
    assert tools.store.tree.owned == {0: 1}


def test_a_guest_lives_below_its_home() -> None:
    _, tools, guest = guest_store()
    guest.write("data/x", b"1")
    assert tools.read("/local/domain/1/data/x") == b"1"
    assert tools.perms("/local/domain/1/data/x") == ["n1"]
    assert refused(lambda: guest.write("name", b"evil")) is Error.EACCES
    assert refused(lambda: guest.write("/tool", b"evil")) is Error.EACCES
    assert refused(lambda: guest.read("/nothing")) is Error.EACCES
    assert refused(lambda: guest.read("nothing")) is Error.ENOENT
    assert guest.ask(Op.GET_DOMAIN_PATH, b"1\0") == b"/local/domain/1\0"
    for op in (Op.INTRODUCE, Op.RELEASE, Op.CONTROL, Op.SET_TARGET, Op.RESUME):
        assert refused(lambda op=op: guest.ask(op, b"1\0")) is Error.EACCES  # type: ignore[misc]


def test_only_the_owner_sets_permissions_and_only_domain_0_gives_away() -> None:
    _, tools, guest = guest_store()
    guest.write("data/x", b"1")
    guest.chmod("data/x", "r1", "b5")
    assert guest.perms("data/x") == ["r1", "b5"]
    assert refused(lambda: guest.chmod("data/x", "n5")) is Error.EPERM
    assert refused(lambda: guest.chmod("data/x", "q1")) is Error.EINVAL
    assert refused(lambda: guest.chmod("data/x", "n1", "r2", "r3", "r4", "r5", "r6")) is Error.ENOSPC
    tools.chmod("/local/domain/1/data/x", "n0", "w1")
    assert refused(lambda: guest.chmod("data/x", "n1")) is Error.EACCES
    assert refused(lambda: guest.read("data/x")) is Error.EACCES
    guest.write("data/x", b"2")


def test_a_watch_fires_at_once_and_for_what_is_below() -> None:
    _, tools, guest = guest_store()
    guest.watch("data", "t")
    guest.watch("/local/domain/1/data", "shallow", depth=1)
    assert guest.heard() == [("data", "t"), ("/local/domain/1/data", "shallow")]
    guest.write("data/a/b", b"")
    assert guest.heard() == [("data/a/b", "t")]
    guest.watch("data/a/b", "deep")
    guest.heard()
    tools.rm("/local/domain/1/data/a")
    assert set(guest.heard()) == {
        ("data/a", "t"),
        ("/local/domain/1/data/a", "shallow"),
        ("data/a/b", "deep"),
    }
    assert refused(lambda: guest.watch("data", "t")) is Error.EEXIST
    assert guest.ask(Op.UNWATCH, b"data\0t\0") == b"OK\0"
    assert refused(lambda: guest.ask(Op.UNWATCH, b"data\0t\0")) is Error.ENOENT


def test_nobody_hears_of_what_he_may_not_read() -> None:
    _, tools, guest = guest_store()
    guest.watch("/", "all")
    guest.heard()
    tools.write("/secret", b"x")
    assert guest.heard() == []
    tools.chmod("/secret", "n0", "r1")
    assert guest.heard() == [("/secret", "all")]
    tools.chmod("/secret", "n0")
    assert guest.heard() == [("/secret", "all")]
    tools.rm("/secret")
    assert guest.heard() == []


def test_the_coming_and_going_of_domains_is_heard_by_domain_0() -> None:
    store, tools, guest = guest_store()
    assert refused(lambda: guest.watch("@releaseDomain", "r")) is Error.EACCES
    tools.watch("@releaseDomain", "r")
    tools.watch("@introduceDomain", "i")
    tools.heard()
    assert tools.ask(Op.INTRODUCE, b"2\x0010\x003\0") == b"OK\0"
    assert tools.heard() == [("@introduceDomain", "i")]
    assert tools.ask(Op.IS_DOMAIN_INTRODUCED, b"2\0") == b"T\0"
    guest.write("data/x", b"")
    guest.watch("data", "t")
    assert tools.ask(Op.RELEASE, b"1\0") == b"OK\0"
    assert tools.heard() == [("@releaseDomain", "r")]
    assert tools.perms("/local/domain/1/data/x") == ["n0"]
    guest.heard()
    tools.write("/local/domain/1/data/x", b"")
    assert guest.heard() == []
    assert store.tree.owned.keys() == {0}


def test_a_transaction_is_seen_by_nobody_before_its_end() -> None:
    tools = Party(Store(), 0)
    tools.watch("/a", "t")
    tools.heard()
    tx = tools.begin()
    tools.write("/a", b"1", tx=tx)
    assert tools.read("/a", tx=tx) == b"1"
    assert refused(lambda: tools.read("/a")) is Error.ENOENT
    assert tools.heard() == []
    tools.end(tx)
    assert tools.read("/a") == b"1"
    assert tools.heard() == [("/a", "t")]
    assert refused(lambda: tools.end(tx)) is Error.ENOENT
    assert refused(lambda: tools.read("/a", tx=99)) is Error.ENOENT


def test_transactions_conflict_only_in_what_they_have_seen() -> None:
    tools = Party(Store(), 0)
    tools.mkdir("/d")
    first, second = tools.begin(), tools.begin()
    tools.write("/d/x", b"1", tx=first)
    tools.write("/d/y", b"2", tx=second)
    tools.end(first)
    tools.end(second)
    assert sorted(tools.names("/d")) == ["x", "y"]
    third = tools.begin()
    assert tools.names("/d", tx=third)
    tools.write("/d/x", b"9")
    tools.write("/e", b"", tx=third)
    tools.end(third)
    fourth = tools.begin()
    tools.names("/d", tx=fourth)
    tools.write("/d/z", b"")
    assert refused(lambda: tools.end(fourth)) is Error.EAGAIN
    fifth = tools.begin()
    assert refused(lambda: tools.read("/new", tx=fifth)) is Error.ENOENT
    tools.write("/new", b"")
    assert refused(lambda: tools.end(fifth)) is Error.EAGAIN


def test_a_guest_cannot_take_more_than_its_quota() -> None:
    _, _, guest = guest_store()
    quota = Quota()
    assert refused(lambda: guest.write("data/big", b"x" * (quota.value_bytes + 1))) is Error.ENOSPC
    for number in range(quota.nodes - 1):
        guest.write(f"data/{number}", b"")
    assert refused(lambda: guest.write("data/more", b"")) is Error.ENOSPC
    guest.rm("data/0")
    guest.write("data/more", b"")
    assert refused(lambda: guest.write("data" + "/a" * quota.depth, b"")) is Error.EINVAL
    transactions = [guest.begin() for _ in range(quota.transactions)]
    assert refused(guest.begin) is Error.ENOSPC
    guest.end(transactions[0], commit=False)
    tx = guest.begin()

    def read_all() -> None:
        for number in range(1, quota.nodes):
            guest.read(f"data/{number}", tx=tx)

    assert refused(read_all) is Error.ENOSPC
    for number in range(quota.watches):
        guest.watch("data", str(number))
    assert refused(lambda: guest.watch("data", "more")) is Error.ENOSPC
    assert guest.ask(Op.RESET_WATCHES, b"\0") == b"OK\0"
    guest.watch("data", "more")


def test_events_that_nobody_fetches_are_merged_not_dropped() -> None:
    store = Store(Quota(events=10))
    tools = Party(store, 0)
    tools.mkdir("/d")
    tools.chmod("/d", "r0")
    guest = Party(store, 1)
    guest.watch("/d", "t")
    for number in range(1000):
        tools.write(f"/d/{number}", b"")
    events = guest.heard()
    assert len(events) <= 12
    assert ("/d", "t") in events[-2:]


def test_a_tool_that_stops_reading_costs_a_bounded_amount_of_memory() -> None:
    store = Store(Quota(tool_events=10))
    tools, other = Party(store, 0), Party(store, 0)
    tools.watch("/d", "t")
    for number in range(1000):
        other.write(f"/d/{number}", b"")
    events = tools.heard()
    assert len(events) <= 12
    assert ("/d", "t") in events[-2:]


def test_an_event_that_no_message_can_hold_is_not_sent() -> None:
    _, _, guest = guest_store()
    guest.watch("data", "t" * 4000)
    guest.watch("data", "short")
    guest.heard()
    guest.write(f"data/{'a' * 2000}", b"")
    assert guest.heard() == [(f"data/{'a' * 2000}", "short")]


def test_a_long_directory_comes_in_parts() -> None:
    tools = Party(Store(), 0)
    wanted = [f"a-rather-long-name-{number}" for number in range(500)]
    for name in wanted:
        tools.write(f"/d/{name}", b"")
    assert refused(lambda: tools.names("/d")) is Error.E2BIG
    names, generations = b"", set()
    while not names.endswith(b"\0\0"):
        reply = tools.ask(Op.DIRECTORY_PART, b"/d\0%d\0" % len(names))
        assert len(reply) <= PAYLOAD_MAX
        generation, _, part = reply.partition(b"\0")
        generations.add(generation)
        names += part
    assert names.decode().split("\0")[:-2] == wanted
    assert len(generations) == 1
    assert tools.ask(Op.DIRECTORY_PART, b"/d\x0099999\0").endswith(b"\0\0")


def test_answers_that_nobody_fetches_stop_the_questions() -> None:
    connection = Connection(Store(), 0)
    question = HEADER.pack(Op.DIRECTORY, 1, 0, 2) + b"/\0"
    connection.receive((HEADER.pack(Op.WRITE, 1, 0, 4003) + b"/a\0" + b"x" * 4000) * 1)
    connection.receive((HEADER.pack(Op.READ, 1, 0, 3) + b"/a\0") * 100 + question)
    assert len(connection.output) < 8 * PAYLOAD_MAX
    fetched = 0
    while connection.output:
        fetched += len(connection.output)
        connection.output.clear()
        connection.receive(b"")
    assert fetched > 100 * 4000


def test_a_message_too_long_ends_the_connection() -> None:
    connection = Connection(Store(), 1)
    with pytest.raises(ProtocolError):
        connection.receive(HEADER.pack(Op.READ, 0, 0, PAYLOAD_MAX + 1))


@given(
    messages=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.integers(0, 3),
            st.one_of(
                st.binary(max_size=64),
                st.lists(st.sampled_from([b"/", b"a", b"/local/domain/1/data", b"n1", b"1", b"T", b"@x", b""])).map(
                    lambda parts: b"".join(part + b"\0" for part in parts)
                ),
            ),
        ),
        max_size=30,
    ),
    domid=st.integers(0, 1),
    cuts=st.lists(st.integers(1, 40), min_size=1),
)
def test_whatever_is_sent_gets_one_answer_and_breaks_nothing(
    messages: list[tuple[int, int, bytes]], domid: int, cuts: list[int]
) -> None:
    store, _, guest = guest_store()
    party = Party(store, 0) if domid == 0 else guest
    stream = b"".join(HEADER.pack(op, 5, tx, len(payload)) + payload for op, tx, payload in messages)
    position = 0
    answers = 0
    while position < len(stream):
        cut = cuts[position % len(cuts)]
        party.connection.receive(stream[position : position + cut])
        position += cut
        answers += len(party.drain())
    assert answers == len(messages)
    counted: dict[int, int] = {}
    for node in store.tree.root.walk():
        counted[node.perms.owner] = counted.get(node.perms.owner, 0) + 1
    assert counted == dict(store.tree.owned)
