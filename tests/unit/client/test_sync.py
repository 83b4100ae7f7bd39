from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec
import pytest

from pyxen import errors
from pyxen.api import (
    CoreDump,
    DomainList,
    Event,
    Image,
    ImageList,
    Peer,
    PeerList,
    Problem,
    Progress,
    SavedState,
    Trigger,
)
from pyxen.client import Address, Client, DomainNotFound, find_address
from pyxen.config.model import DomainConfig
from pyxen.snapshot_api import Snapshot, SnapshotList

from .stub import WEB, Stub, chunks, hang_up, problem, send


def test_calls_share_one_connection_and_decode(stub: Stub, client: Client) -> None:
    stub.answers = {"GET /v1/domains": DomainList([WEB]), "GET /v1/domains/web": WEB}
    assert client.domains() == [WEB]
    assert client.domain("web") == WEB
    assert stub.connections == 1


def test_orders_carry_their_bodies(stub: Stub, client: Client) -> None:
    for verb in ("start", "shutdown", "rename", "destroy", "pause", "unpause", "suspend", "resume"):
        stub.answers[f"POST /v1/domains/web/{verb}"] = WEB
    stub.answers["POST /v1/domains"] = (201, msgspec.json.encode(WEB))
    stub.answers["DELETE /v1/domains/web"] = (204, b"")
    client.create(DomainConfig(name="web", image="tiny"), paused=True)
    client.start("web", paused=True)
    client.shutdown("web", "reboot")
    client.rename("web", "web2")
    for order in (client.destroy, client.pause, client.unpause, client.suspend, client.resume, client.delete):
        order("web")
    bodies = [msgspec.json.decode(request.body) if request.body else None for request in stub.requests]
    assert bodies == [
        {"config": {"name": "web", "image": "tiny"}, "paused": True, "managed": False},
        {"paused": True},
        {"reason": "reboot"},
        {"name": "web2"},
        None,
        None,
        None,
        None,
        None,
        None,
    ]


def test_save_and_restore_carry_the_path(stub: Stub, client: Client) -> None:
    written = SavedState("web", "/web.saved", 4096)
    stub.answers["POST /v1/domains/web/save"] = written
    stub.answers["POST /v1/restore"] = (201, msgspec.json.encode(WEB))
    assert client.save("web", "/web.saved", checkpoint=True) == written
    assert client.restore("/web.saved", paused=True).name == "web"
    assert [msgspec.json.decode(request.body) for request in stub.requests] == [
        {"path": "/web.saved", "checkpoint": True},
        {"path": "/web.saved", "paused": True},
    ]


def test_migrations_and_peers(stub: Stub, client: Client) -> None:
    steps = [Progress("sending the memory", 0.5), Progress("done", done=True)]
    stub.answers["POST /v1/domains/web/migrate"] = chunks(*(msgspec.json.encode(step) + b"\n" for step in steps))
    assert list(client.migrate("web", "b", live=False, downtime_ms=50)) == steps
    said = msgspec.json.decode(stub.requests[0].body)
    assert (said["host"], said["live"], said["downtime_ms"], said["port"]) == ("b", False, 50, None)
    with pytest.raises(errors.InvalidRequest, match="downtime_ms"):
        list(client.migrate("web", "b", downtime_ms=0))
    stub.answers["POST /v1/domains/web/migrate/cancel"] = WEB
    stub.answers["POST /v1/domains/web/migrate/here"] = WEB
    assert client.cancel_migration("web") == client.keep("web") == WEB
    peer = Peer("b", "aa:bb")
    stub.answers["GET /v1/peers"] = PeerList("PEM", "cc", [peer])
    stub.answers["PUT /v1/peers/b"] = peer
    stub.answers["DELETE /v1/peers/b"] = (204, b"")
    assert client.add_peer("b", "PEM") == client.peers().peers[0] == peer
    client.remove_peer("b")


def test_orders_for_running_domains_carry_theirs(stub: Stub, client: Client) -> None:
    for verb in ("pin-vcpus", "set-credit", "set-vcpus", "set-memory", "set-maxmem", "sysrq", "trigger"):
        stub.answers[f"POST /v1/domains/web/{verb}"] = (202, msgspec.json.encode(WEB))
    dump = CoreDump("web", "/core", 4096)
    stub.answers["POST /v1/domains/web/dump-core"] = dump
    client.pin_vcpus("web", 1, cpus="0-3")
    client.set_credit("web", cap=50)
    client.set_vcpus("web", 2)
    client.set_memory("web", 128)
    client.set_maxmem("web", 512)
    client.sysrq("web", "s")
    client.trigger("web", Trigger.NMI, 1)
    assert client.dump_core("web", "/core", live=True) == dump
    assert [msgspec.json.decode(request.body) for request in stub.requests] == [
        {"vcpu": 1, "cpus": "0-3", "cpus_soft": None},
        {"weight": None, "cap": 50},
        {"count": 2},
        {"memory_mib": 128},
        {"maxmem_mib": 512},
        {"key": "s"},
        {"trigger": "nmi", "vcpu": 1},
        {"path": "/core", "live": True, "crash": False, "reset": False},
    ]


def test_a_core_may_take_longer_than_other_answers(stub: Stub) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        send(handler, CoreDump("web", "/core", 0))

    stub.answers["POST /v1/domains/web/dump-core"] = slowly
    stub.answers["POST /v1/domains/web/pause"] = slowly
    with Client(Address(socket=stub.path), timeout=0.1) as client:
        assert client.dump_core("web").path == "/core"
        with pytest.raises(errors.OutcomeUnknown):
            client.pause("web")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid-request", errors.InvalidRequest),
        (400, "invalid-config", errors.ConfigError),
        (422, "unsupported", errors.Unsupported),
        (404, "not-found", errors.NotFound),
        (409, "conflict", errors.Conflict),
        (507, "resource-exhausted", errors.ResourceExhausted),
        (503, "unavailable", errors.Unavailable),
        (500, "engine-failed", errors.EngineError),
        (409, "of-a-later-version", errors.Conflict),
        (500, "internal", errors.PyxenError),
    ],
)
def test_problems_become_their_exceptions(
    stub: Stub, client: Client, status: int, code: str, kind: type[errors.PyxenError]
) -> None:
    stub.answers["POST /v1/domains/web/start"] = problem(status, code, "no and no", hint="try this", key="memory")
    with pytest.raises(errors.PyxenError) as caught:
        client.start("web")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("no and no", "try this")


def test_an_answer_that_is_no_problem_body_still_says_its_status(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/host"] = (502, b"<html>gateway</html>")
    with pytest.raises(errors.OutcomeUnknown, match="502"):
        client.host()


def test_a_missing_token_says_where_it_is(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/host"] = problem(401, "unauthorized", "who are you", hint="for programmers")
    with pytest.raises(errors.PyxenError) as caught:
        client.host()
    assert "XM_TOKEN" in str(caught.value.hint)


def test_an_unknown_domain_is_told_from_another_missing_thing(stub: Stub, client: Client) -> None:
    stub.answers["POST /v1/domains/web/start"] = [
        problem(404, "not-found", "Domain 'web' does not exist"),
        problem(404, "not-found", "kernel /boot/x does not exist"),
    ]
    with pytest.raises(DomainNotFound):
        client.start("web")
    with pytest.raises(errors.NotFound) as caught:
        client.start("web")
    assert not isinstance(caught.value, DomainNotFound)


@pytest.mark.parametrize("ref", ["", ".", "..", "a/b", "../host"])
def test_what_can_be_no_domain_is_not_asked_for(stub: Stub, client: Client, ref: str) -> None:
    with pytest.raises(DomainNotFound):
        client.destroy(ref)
    assert stub.requests == []


def test_strange_names_are_quoted(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/domains/a%3Fb%23c%20d"] = WEB
    assert client.domain("a?b#c d") == WEB


def test_nonsense_from_the_server_is_an_error(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/host"] = b'{"host": 5}'
    with pytest.raises(errors.PyxenError, match="can't be read"):
        client.host()


def test_no_socket_says_how_to_start_xend(tmp_path: Path) -> None:
    path = tmp_path / "xend.sock"
    with pytest.raises(errors.Unavailable) as caught:
        Client(Address(socket=path)).version()
    assert str(path) in str(caught.value)
    assert caught.value.hint == "Start it with: xend start"


def test_a_socket_without_a_listener_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "xend.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(errors.Unavailable, match="not running"):
        Client(Address(socket=path)).version()


def test_a_lost_answer_to_an_order_is_an_unknown_outcome(stub: Stub, client: Client) -> None:
    stub.answers["POST /v1/domains/web/start"] = hang_up
    with pytest.raises(errors.OutcomeUnknown):
        client.start("web")
    assert len(stub.requests) == 1


def test_a_lost_answer_to_a_question_is_unavailable(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/domains/web"] = hang_up
    with pytest.raises(errors.Unavailable):
        client.domain("web")


def test_an_order_that_times_out_is_an_unknown_outcome(stub: Stub) -> None:
    go_on = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        go_on.wait(30)

    stub.answers["POST /v1/domains/web/start"] = silent
    with Client(Address(socket=stub.path), timeout=0.05) as client, pytest.raises(errors.OutcomeUnknown):
        client.start("web")
    go_on.set()


def test_a_kept_connection_that_died_is_replaced_even_for_an_order(tmp_path: Path) -> None:
    address = Address(socket=tmp_path / "xend.sock")
    with Client(address) as client:
        for _ in range(2):
            with Stub(tmp_path / "xend.sock", {"POST /v1/domains/web/start": close_after(WEB)}) as stub:
                assert client.start("web") == WEB
                assert len(stub.requests) == 1


def close_after(body: msgspec.Struct) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer after which the server hangs up, without having said so."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        send(handler, body)
        handler.close_connection = True

    return answer


def test_a_patient_client_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "xend.sock"
    client = Client(Address(socket=path)).patient(30)
    results: list[object] = []
    asking = threading.Thread(target=lambda: results.append(client.domain("web")))
    asking.start()
    with Stub(path, {"GET /v1/domains/web": [hang_up, problem(503, "unavailable", "stopping"), WEB]}):
        asking.join(timeout=30)
        client.close()
    assert results == [WEB]


def test_a_patient_client_never_repeats_an_order(stub: Stub) -> None:
    stub.answers["POST /v1/domains/web/destroy"] = problem(503, "unavailable", "stopping")
    with Client(Address(socket=stub.path), patience_s=30) as client, pytest.raises(errors.Unavailable):
        client.destroy("web")
    assert len(stub.requests) == 1


def test_a_build_yields_its_steps(stub: Stub, client: Client) -> None:
    image = Image(name="tiny", kind="tiny", size_bytes=1, created_at=0, kernel_release="6.1", kernel="/k")
    steps = [Progress("fetching", 0.5), Progress("done", 1.0, done=True, image=image)]
    stub.answers["POST /v1/images/tiny/build"] = chunks(*(msgspec.json.encode(step) + b"\n" for step in steps))
    assert list(client.build_image("tiny", force=True)) == steps
    assert msgspec.json.decode(stub.requests[0].body) == {"force": True, "options": {}}


def test_a_build_that_fails_raises_what_it_says(stub: Stub, client: Client) -> None:
    failed = Progress("oops", error=Problem(title="", status=507, detail="disk full", code="resource-exhausted"))
    stub.answers["POST /v1/images/tiny/build"] = chunks(msgspec.json.encode(failed) + b"\n")
    with pytest.raises(errors.ResourceExhausted, match="disk full"):
        list(client.build_image("tiny"))


@pytest.mark.parametrize("end", [True, False])
def test_a_build_that_breaks_off_is_an_error(stub: Stub, client: Client, end: bool) -> None:
    stub.answers["POST /v1/images/tiny/build"] = chunks(msgspec.json.encode(Progress("fetching")) + b"\n", end=end)
    with pytest.raises(errors.PyxenError):
        list(client.build_image("tiny"))


def event_lines(*events: Event) -> list[bytes]:
    return [b": hello\n\n", *(b"id: %d\ndata: %s\n\n" % (e.sequence, msgspec.json.encode(e)) for e in events)]


def test_events_go_on_where_they_were(stub: Stub) -> None:
    one, two = Event(1, 0.0, "domain-started"), Event(2, 0.0, "domain-stopped", reason="poweroff")
    stub.answers["GET /v1/events"] = chunks(*event_lines(one), end=False)
    stub.answers["GET /v1/events?after=1"] = chunks(*event_lines(two))
    with Client(Address(socket=stub.path), patience_s=30) as client:
        events = client.events()
        assert [next(events), next(events)] == [one, two]
        events.close()  # type: ignore[attr-defined]


def test_events_end_for_an_impatient_client(stub: Stub, client: Client) -> None:
    stub.answers["GET /v1/events?after=0"] = chunks(*event_lines(Event(1, 0.0, "xend-stopping")))
    events = client.events(after=0)
    next(events)
    with pytest.raises(errors.Unavailable):
        next(events)


def test_images_and_texts(stub: Stub, client: Client) -> None:
    stub.answers = {
        "GET /v1/images": ImageList([], ["tiny"]),
        "DELETE /v1/images/tiny": (204, b""),
        "GET /v1/log?tail=2": b"a\nb\n",
        "GET /v1/dmesg": b"\xff\n",
        "GET /v1/schema/domain": b'{"type": "object"}',
    }
    assert client.images().buildable == ["tiny"]
    client.remove_image("tiny")
    assert client.log(tail=2) == "a\nb\n"
    assert client.dmesg() == "\N{REPLACEMENT CHARACTER}\n"
    assert client.schema() == {"type": "object"}


def test_addresses(tmp_path: Path) -> None:
    root = {"PYXEN_ROOT": str(tmp_path)}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/token").write_text("secret\n")
    assert find_address(root) == Address(socket=tmp_path / "run/xend.sock")
    assert find_address({**root, "XM_SERVER": "unix:///a/b"}) == Address(socket=Path("/a/b"))
    tcp = find_address({**root, "XM_SERVER": "http://127.0.0.1:8001"})
    assert tcp == Address(host="127.0.0.1", port=8001, token="secret")
    assert tcp.headers == {"Authorization": "Bearer secret"}
    assert find_address({**root, "XM_SERVER": "http://[::1]", "XM_TOKEN": "t"}).netloc == "[::1]:8000"


@pytest.mark.parametrize("server", ["localhost:8000", "https://x", "unix://a/b", "http://", "http://h:x", "x"])
def test_bad_addresses(server: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="XM_SERVER"):
        find_address({"XM_SERVER": server})


def test_tcp_sends_the_token() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list[bytes] = []
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"version":"0.1"}')

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(Address(host="127.0.0.1", port=port, token="secret")) as client:
            assert client.version().version == "0.1"
        thread.join()
    assert b"Authorization: Bearer secret\r\n" in seen[0]
    assert b"Host: 127.0.0.1:%d\r\n" % port in seen[0]


def test_snapshots_and_clones(stub: Stub, client: Client) -> None:
    taken = Snapshot("a+b", "web", "u", 0.0, [], 0)
    stub.answers["POST /v1/domains/web/snapshots"] = taken
    stub.answers["GET /v1/domains/web/snapshots"] = SnapshotList([taken])
    stub.answers["GET /v1/snapshots"] = SnapshotList([])
    stub.answers["POST /v1/domains/web/snapshots/a%2Bb/revert"] = WEB
    stub.answers["DELETE /v1/domains/web/snapshots/a%2Bb"] = (204, b"")
    stub.answers["POST /v1/domains/web/clone"] = (201, msgspec.json.encode(WEB))
    assert client.create_snapshot("web", "a+b") == taken
    assert (client.snapshots("web"), client.snapshots()) == ([taken], [])
    assert client.revert("web", "a+b").name == "web"
    client.remove_snapshot("web", "a+b")
    assert client.clone("web", "two", "a+b", managed=True).name == "web"
    with pytest.raises(errors.NotFound, match="has no snapshot"):
        client.revert("web", "a/b")
