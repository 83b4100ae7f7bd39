"""User-mode networks: both programs answer the guest's first question, and end when they should."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from pyxen.config.model import DomainConfig, Forward, Vif
from pyxen.engine import usernet
from pyxen.engine.process import end_all, find
from pyxen.engine.usernet import open_usernet
from pyxen.engine.vifs import check_networks
from pyxen.errors import EngineError, Unsupported
from tests.guest.host import free_port, wait_for

_GUEST_MAC = bytes.fromhex("00163e000001")
_WHO_HAS_THE_GATEWAY = (
    b"\xff" * 6 + _GUEST_MAC + bytes.fromhex("080600010800060400 01".replace(" ", ""))
    + _GUEST_MAC + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2])
)  # fmt: skip


def ask(fd: int) -> bytes:
    """The ARP reply for 10.0.2.2, as the guest would get it."""
    with socket.socket(fileno=fd) as stream:
        stream.settimeout(10)
        stream.sendall(struct.pack(">I", len(_WHO_HAS_THE_GATEWAY)) + _WHO_HAS_THE_GATEWAY)
        while True:
            (length,) = struct.unpack(">I", stream.recv(4, socket.MSG_WAITALL))
            frame = stream.recv(length, socket.MSG_WAITALL)
            if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02":
                return frame


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("routed", [True, False])
def test_the_gateway_answers_and_the_forward_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, routed: bool
) -> None:
    if routed and not usernet._has_route():
        pytest.skip("passt needs a default route, this machine has none")
    monkeypatch.setattr(usernet, "_has_route", lambda: routed)
    port = free_port()
    fd = open_usernet(tmp_path, "vif0", [Forward(host=port, guest=22)], None)
    try:
        assert listening(port)
        reply = ask(os.dup(fd))
        assert reply[:6] == _GUEST_MAC and reply[28:32] == bytes([10, 0, 2, 2])
    finally:
        os.close(fd)
        end_all(tmp_path)
    assert find(tmp_path) == []
    wait_for(lambda: not listening(port), "the network's process is gone")


def test_a_network_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usernet, "_has_route", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EngineError, match="host forwarding"):
        open_usernet(tmp_path, "vif0", [Forward(host=taken.getsockname()[1], guest=22)], None)
    assert find(tmp_path) == []


def test_routes_are_read_as_the_kernel_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    routes = tmp_path / "route"
    monkeypatch.setattr(usernet, "_ROUTES", routes)
    assert not usernet._has_route()
    routes.write_text(head + "br0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
    assert not usernet._has_route()
    routes.write_text(head + "br0\t00000000\t0200000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
    assert usernet._has_route()


def test_what_is_asked_of_vifs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_networks(DomainConfig(name="x", vif=(Vif(),))) == []
    (warning,) = check_networks(DomainConfig(name="x", vif=(Vif(model="e1000"),)))
    assert "netfront, not e1000" in warning
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(Unsupported) as caught:
        check_networks(DomainConfig(name="x", vif=(Vif(),)))
    assert caught.value.hint == "Install it: apt-get install passt"
