"""Somebody who speaks usbredir: a made-up USB device behind a socket, which can be pulled out.

The protocol is Spice's (usbredir's docs/usb-redirection-protocol.md, version 0.7), with the capabilities without which
QEMU puts no device on an xHCI: each packet is type and length of 32 bits each, an id of 64 (of 32 before both have said
hello), and its own header.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

VENDOR, PRODUCT, NAME = 0x1209, 0x0001, "Pyxen Test Device"
_HELLO, _CONNECT, _INTERFACES, _ENDPOINTS, _CONFIGURATION, _ALTERNATE, _CONTROL = 0, 1, 4, 5, 8, 11, 100
_CAPABILITIES = 1 << 4 | 1 << 5 | 1 << 6  # ep_info_max_packet_size, 64bits_ids, 32bits_bulk_length
_NO_ENDPOINT, _STALL = 255, 4
_DEVICE = struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x200, 0xFF, 0, 0, 64, VENDOR, PRODUCT, 0x100, 0, 1, 0, 1)
_INTERFACE = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 0, 0xFF, 0, 0, 0)
_CONFIG = struct.pack("<BBHBBBBB", 9, 2, 9 + len(_INTERFACE), 1, 1, 0, 0x80, 50) + _INTERFACE


def _text(text: str) -> bytes:
    data = text.encode("utf-16-le")
    return struct.pack("<BB", 2 + len(data), 3) + data


_DESCRIPTORS = {(1, 0): _DEVICE, (2, 0): _CONFIG, (3, 0): struct.pack("<BBH", 4, 3, 0x409), (3, 1): _text(NAME)}


class Peer:
    """Listens at ``address`` (``HOST:PORT``) and takes one guest after the other."""

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
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # a thread that waits in accept() keeps it open otherwise
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
        hello = b"a test".ljust(64, b"\0") + struct.pack("<I", _CAPABILITIES)
        connection.sendall(struct.pack("<III", _HELLO, len(hello), 0) + hello)
        kind, length, _ = struct.unpack("<III", _receive(connection, 12))
        assert kind == _HELLO
        _receive(connection, length)
        _send(connection, _INTERFACES, 0, struct.pack("<I32s32s32s32s", 1, b"", b"\xff", b"", b""))
        types = bytearray([_NO_ENDPOINT] * 32)
        types[0] = types[16] = 0  # control, out and in
        sizes = [64 if kind == 0 else 0 for kind in types]
        _send(connection, _ENDPOINTS, 0, bytes(types) + bytes(64) + struct.pack("<32H", *sizes))
        _send(connection, _CONNECT, 0, struct.pack("<BBBBHH", 2, 0xFF, 0, 0, VENDOR, PRODUCT))
        while True:
            kind, length, number = struct.unpack("<IIQ", _receive(connection, 16))
            body = _receive(connection, length)
            match kind:
                case 6 | 7:  # set and get configuration
                    _send(connection, _CONFIGURATION, number, struct.pack("<BB", 0, 1))
                case 9:  # set alternate setting
                    _send(connection, _ALTERNATE, number, struct.pack("<BBB", 0, body[0], body[1]))
                case 100:
                    _send(connection, _CONTROL, number, _answer(body))


def _answer(body: bytes) -> bytes:
    """To a control transfer: endpoint, request, type, status, value, index, length."""
    endpoint, request, kind, _, value, index, length = struct.unpack("<BBBBHHH", body[:10])
    data, status = b"", 0
    if kind == 0x80 and request == 6:
        found = _DESCRIPTORS.get((value >> 8, value & 0xFF))
        data, status = (found[:length], 0) if found is not None else (b"", _STALL)
    elif kind & 0x80:
        data = bytes(length)
    return struct.pack("<BBBBHHH", endpoint, request, kind, status, value, index, len(data)) + data


def _send(connection: socket.socket, kind: int, number: int, body: bytes) -> None:
    connection.sendall(struct.pack("<IIQ", kind, len(body), number) + body)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
