"""Disk servers that answer what they shouldn't."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxen.backend.nbd import NbdDisk
from pyxen.errors import EngineError

_EXPORT = struct.pack(">HQH", 0, 1 << 20, 1)


def option(kind: int, data: bytes = b"") -> bytes:
    """A reply to the client's only option."""
    return struct.pack(">QIII", 0x3E889045565A9, 7, kind, len(data)) + data


def serve(path: Path, *replies: bytes) -> Callable[[], None]:
    """A server that greets, then sends these whatever it is asked; call what is returned at the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def run() -> None:
        client, _ = listener.accept()
        with client, listener, contextlib.suppress(ConnectionError):  # who is refused hangs up
            client.sendall(struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3) + b"".join(replies))
            while client.recv(65536):
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread.join


@pytest.mark.parametrize(
    "replies",
    [
        [option(3, b"\0\0")],
        [option(3, _EXPORT[:-1])],
        [option(3, struct.pack(">HQH", 0, 1 << 63, 1))],
        [option(3, _EXPORT)] * 100,
        [option(1, bytes(70_000))],
    ],
)
def test_nonsense_is_refused(tmp_path: Path, replies: list[bytes]) -> None:
    end = serve(tmp_path / "socket", *replies, option(1))
    with pytest.raises(EngineError, match="answers"):
        NbdDisk.at(tmp_path / "socket")
    end()


def test_information_of_an_unknown_kind_is_passed_over(tmp_path: Path) -> None:
    end = serve(tmp_path / "socket", option(3, b"\0"), option(3, b"\0\x09"), option(3, _EXPORT), option(1))
    disk = NbdDisk.at(tmp_path / "socket")
    assert disk.size == 1 << 20
    disk.close()
    end()


@pytest.mark.parametrize(("code", "expected"), [(28, errno.ENOSPC), (0xFFFFFFFF, errno.EIO), (4000, errno.EIO)])
def test_any_error_is_one_of_the_hosts(tmp_path: Path, code: int, expected: int) -> None:
    end = serve(tmp_path / "socket", option(3, _EXPORT), option(1), struct.pack(">IIQ", 0x67446698, code, 1))
    disk = NbdDisk.at(tmp_path / "socket")
    with pytest.raises(OSError) as caught:
        disk.read_into(0, [memoryview(bytearray(512))])
    assert caught.value.errno == expected
    disk.close()
    end()
