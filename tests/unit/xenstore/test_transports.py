"""The socket with its client, and the calls of domain 0's own code."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.abi.xs_wire import HEADER, Error
from pyxen.errors import Unavailable
from pyxen.xenstore.client import StoreClient
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.listener import Listener
from pyxen.xenstore.local import Local
from pyxen.xenstore.store import Store
from tests.unit.xenstore.talk import Party


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """The socket of a store that a loop in a thread serves."""
    path = tmp_path / "xenstore.sock"
    selector = selectors.DefaultSelector()
    listener = Listener(path, Store(), selector)
    stop, stopped = socket.socketpair()
    running = [True]
    selector.register(stopped, selectors.EVENT_READ, lambda mask: running.clear())

    def loop() -> None:
        while running:
            for key, mask in selector.select():
                key.data(mask)
            listener.flush()

    thread = threading.Thread(target=loop)
    thread.start()
    yield path
    stop.send(b"x")
    thread.join()
    listener.close()
    selector.close()
    stop.close()
    stopped.close()


def test_tools_read_write_and_list(served: Path) -> None:
    with StoreClient(served) as client:
        client.write("/a/b", b"1")
        client.mkdir("/a/c")
        client.set_perms("/a/b", ["n0", "r1"])
        assert client.read("/a/b") == b"1"
        assert client.names("/a") == ["b", "c"]
        assert client.perms("/a/b") == ["n0", "r1"]
        client.remove("/a/b")
        with pytest.raises(XsError) as caught:
            client.read("/a/b")
        assert caught.value.error is Error.ENOENT


def test_a_directory_longer_than_a_message_is_listed_whole(served: Path) -> None:
    with StoreClient(served) as client:
        wanted = [f"a-rather-long-name-{number}" for number in range(400)]
        for name in wanted:
            client.write(f"/d/{name}", b"")
        assert client.names("/d") == wanted


def test_one_client_hears_of_another(served: Path) -> None:
    with StoreClient(served) as one, StoreClient(served) as two:
        one.watch("/x", "t")
        assert one.next_event() == ("/x", "t")
        with two.transaction() as tx:
            two.write("/x/y", b"", tx=tx)
        assert one.next_event() == ("/x/y", "t")
        one.unwatch("/x", "t")


def test_a_transaction_that_fails_is_undone(served: Path) -> None:
    with StoreClient(served) as client:
        with pytest.raises(RuntimeError), client.transaction() as tx:
            client.write("/x", b"", tx=tx)
            raise RuntimeError
        assert "x" not in client.names("/")


def test_nonsense_closes_only_its_own_connection(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bad, StoreClient(served) as good:
        bad.connect(str(served))
        bad.send(HEADER.pack(2, 0, 0, 1 << 30))
        assert bad.recv(1) == b""
        good.write("/x", b"1")
        assert good.read("/x") == b"1"


def test_a_store_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        StoreClient(tmp_path / "none")


def test_local_calls() -> None:
    local = Local(Store())
    local.write_all({"/a/b": 1, "/a/c": "x"}, {"/a": ["n1", "r0"], "/new": ["r0"]})
    assert local.read("/a/b") == "1"
    assert local.read("/none") is None
    assert local.names("/a") == ["b", "c"]
    assert local.store.tree.root.children["a"].perms.owner == 1
    local.remove("/a")
    local.remove("/a")
    assert local.names("/") == ["new"]


def test_callbacks_run_after_the_change_that_caused_them_and_may_write() -> None:
    store = Store()
    woken = []
    local = Local(store, wake=lambda: woken.append(1))
    seen: list[str] = []

    def on_change(path: str) -> None:
        seen.append(path)
        if local.read("/a/count") == "1":
            local.write("/a/count", 2)
            assert seen.count("/a/count") == 1

    watch = local.watch("/a", on_change)
    assert seen == ["/a"]
    local.write("/a/count", 1)
    assert seen == ["/a", "/a/count", "/a/count"]
    Party(store, 0).write("/a/z", b"")
    assert woken and "/a/z" not in seen
    local.settle()
    assert seen[-1] == "/a/z"
    Party(store, 0).write("/a/q", b"")
    watch.close()
    local.settle()
    assert seen[-1] == "/a/z"
