"""Somebody who speaks usbredir: a made-up USB device behind a socket, which can be pulled out.

The protocol is Spice's (usbredir's docs/usb-redirection-protocol.md, version 0.7), without any of its capabilities:
each packet is type, length and id, of 32 bits each, and its own header.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

VENDOR, PRODUCT, NAME = 0x1209, 0x0001, "Pyxen Test Device"
_HELLO, _CONNECT, _INTERFACES, _ENDPOINTS = 0, 1, 4, 5
_SET_CONFIGURATION, _GET_CONFIGURATION, _CONFIGURATION = 6, 7, 8
_SET_ALTERNATE, _ALTERNATE = 9, 11
_CONTROL = 100
_UNUSED = 255
_DEVICE = struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x200, 0xFF, 0, 0, 64, VENDOR, PRODUCT, 0x100, 0, 1, 0, 1)
_INTERFACE = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 0, 0xFF, 0, 0, 0)
_CONFIG = struct.pack("<BBHBBBBB", 9, 2, 9 + len(_INTERFACE), 1, 1, 0, 0x80, 50) + _INTERFACE


def _text(text: str) -> bytes:
    data = text.encode("utf-16-le")
    return struct.pack("<BB", 2 + len(data), 3) + data


_DESCRIPTORS = {(1, 0): _DEVICE, (2, 0): _CONFIG, (3, 0): struct.pack("<BBH", 4, 3, 0x409), (3, 1): _text(NAME)}


class Peer:
    """Listens at ``address`` (``HOST:PORT``) for one guest after the other."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        self._connection: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def hang_up(self) -> None:
        """Let go of the guest."""
        if self._connection is not None:
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        with contextlib.suppress(OSError):
            self.hang_up()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                self._connection = connection
                with contextlib.suppress(OSError, EOFError):
                    self._talk(connection)
                connection.close()

    def _talk(self, connection: socket.socket) -> None:
        _send(connection, _HELLO, 0, b"a test".ljust(64, b"\0") + struct.pack("<I", 0))
        while True:
            kind, length, number = struct.unpack("<III", _receive(connection, 12))
            body = _receive(connection, length)
            match kind:
                case 0:
                    _send(connection, _INTERFACES, 0, struct.pack("<I32s32s32s32s", 1, *_one_interface()))
                    unused = bytes([_UNUSED]) * 32
                    ends = bytes([0]) + unused[1:16] + bytes([0]) + unused[17:]
                    _send(connection, _ENDPOINTS, 0, ends + bytes(32) + bytes(32))
                    _send(connection, _CONNECT, 0, struct.pack("<BBBBHH", 2, 0xFF, 0, 0, VENDOR, PRODUCT))
                case 6 | 7:
                    _send(connection, _CONFIGURATION, number, struct.pack("<BB", 0, 1))
                case 9:
                    _send(connection, _ALTERNATE, number, struct.pack("<BBB", 0, body[0], body[1]))
                case 100:
                    _send(connection, _CONTROL, number, _answer(body))


def _one_interface() -> tuple[bytes, bytes, bytes, bytes]:
    return bytes(32), bytes([0xFF]) + bytes(31), bytes(32), bytes(32)


def _answer(body: bytes) -> bytes:
    """To a control transfer: endpoint, request, type, status, value, index, length."""
    endpoint, request, kind, _, value, index, length = struct.unpack("<BBBBHHH", body[:10])
    data, status = b"", 0
    if kind == 0x80 and request == 6:
        found = _DESCRIPTORS.get((value >> 8, value & 0xFF))
        data, status = (found[:length], 0) if found is not None else (b"", 4)  # usb_redir_stall
    elif kind & 0x80:
        data = bytes(length)
    return struct.pack("<BBBBHHH", endpoint, request, kind, status, value, index, len(data)) + data


def _send(connection: socket.socket, kind: int, number: int, body: bytes) -> None:
    connection.sendall(struct.pack("<III", kind, len(body), number) + body)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
