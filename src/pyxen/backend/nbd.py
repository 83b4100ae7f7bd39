"""A disk behind an NBD server, as qemu-nbd or qemu-storage-daemon: qcow2 images are read that way.

A small client of the fixed newstyle handshake and simple replies, after the protocol's description
(doc/proto.md of the NBD project). One request is under way at a time on a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from pyxen.errors import Conflict, EngineError, Unavailable

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_EXPORT = struct.Struct(">HQH")

_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO = 7
_ACK, _INFO = 1, 3
_INFO_EXPORT, _INFO_BLOCK_SIZE = b"\0\0", 3
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_FLAG_READ_ONLY, _FLAG_SEND_FLUSH, _FLAG_SEND_TRIM, _FLAG_SEND_WRITE_ZEROES = 2, 4, 32, 64
_IOV_MAX = 1024
_INFO_MAX = 65536
_REPLIES_MAX = 64
_SIZE_MAX = (1 << 63) - 1
_RANGE_MAX = 1 << 30
"""Bytes of one trim request; the length's field has 32 bits."""


class NbdDisk:
    """The export ``name`` of the server that a socket leads to. Raises Unavailable, EngineError; later OSError."""

    def __init__(self, connection: socket.socket, name: str = "", *, timeout: float = 30.0) -> None:
        """``connection`` is connected, and belongs to this object from now on."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._held = self._cancelling = False
        self._timeout = timeout
        self._name = name
        self.size = 0
        self.sector_size = 512
        self._flags = 0
        self._begin(connection)

    @classmethod
    def at(cls, path: Path, name: str = "") -> NbdDisk:
        """The same, of the server that listens at a path."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise Unavailable(f"there is no disk server at {path}: {error.strerror}") from error
        return cls(connection, name)

    def _begin(self, connection: socket.socket) -> None:
        self._cookie = 0
        self._socket = connection
        try:
            connection.settimeout(self._timeout)
            self._negotiate(self._name.encode())
        except OSError as error:
            connection.close()
            raise Unavailable(f"the server of disk {self._name} does not answer: {error.strerror or error}") from error
        except BaseException:
            connection.close()
            raise

    @property
    def held(self) -> bool:
        return self._held

    def hold(self) -> None:
        """Let all requests wait until ``go_on``; returns when none is under way. May be called again."""
        with self._lock:
            self._held = True

    def go_on(self, connection: socket.socket) -> None:
        """Use another connection from now on, to the same export, which may have become longer.

        Raises as the constructor; then requests go on waiting.
        """
        if not self._held:
            connection.close()
            raise Conflict(f"disk {self._name} has a connection that it uses")
        self._socket.close()
        self._begin(connection)
        with self._lock:
            self._held = False
            self._changed.notify_all()

    def cancel(self, on: bool) -> None:
        with self._lock:
            self._cancelling = on
            self._changed.notify_all()

    @property
    def read_only(self) -> bool:
        return bool(self._flags & _FLAG_READ_ONLY)

    @property
    def discards(self) -> bool:
        return bool(self._flags & _FLAG_SEND_TRIM)

    def read_into(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._lock:
            self._request(_READ, offset, sum(map(len, views)))
            try:
                for view in views:
                    self._receive_into(view)
            except OSError:
                self._socket.close()
                raise

    def write_from(self, offset: int, views: Sequence[memoryview]) -> None:
        with self._lock:
            self._request(_WRITE, offset, sum(map(len, views)), views)

    def flush(self) -> None:
        if self._flags & _FLAG_SEND_FLUSH:
            with self._lock:
                self._request(_FLUSH, 0, 0)

    def discard(self, offset: int, length: int) -> None:
        self._ranges(_TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zeros, without sending them where the server can do that."""
        if self._flags & _FLAG_SEND_WRITE_ZEROES:
            self._ranges(_WRITE_ZEROES, offset, length)
        else:
            self.write_from(offset, [memoryview(bytes(length))])

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):  # it may have gone before us
            self._socket.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()

    def _negotiate(self, name: bytes) -> None:
        magic, option_magic, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option_magic) != (b"NBDMAGIC", b"IHAVEOPT") or not flags & _FIXED_NEWSTYLE:
            raise EngineError(f"what answers for disk {self._name} is no NBD server of today")
        wanted = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        self._socket.sendall(
            struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES))
            + _OPTION.pack(b"IHAVEOPT", _GO, len(wanted))
            + wanted
        )
        for _ in range(_REPLIES_MAX):
            magic, option, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or option != _GO or length > _INFO_MAX:
                raise EngineError(f"the NBD server of disk {self._name} answers nonsense")
            data = self._receive(length)
            if kind == _ACK:
                return
            if kind == _INFO:
                self._note(data)
            elif kind & 0x8000_0000:
                why = data.decode("utf-8", "replace") or f"error {kind & 0x7FFF_FFFF}"
                raise EngineError(f"the NBD server refuses the export {self._name!r}: {why}")
        raise EngineError(f"the NBD server of disk {self._name} answers without an end")

    def _note(self, data: bytes) -> None:
        if data[:2] == _INFO_EXPORT:
            size, flags = _EXPORT.unpack(data)[1:] if len(data) == _EXPORT.size else (-1, 0)
            if not 0 <= size <= _SIZE_MAX:
                raise EngineError(f"the NBD server of disk {self._name} answers nonsense")
            self.size, self._flags = size, flags

    def _ranges(self, command: int, offset: int, length: int) -> None:
        with self._lock:
            while length > 0:
                part = min(length, _RANGE_MAX)
                self._request(command, offset, part)
                offset, length = offset + part, length - part

    def _request(self, command: int, offset: int, length: int, views: Sequence[memoryview] = ()) -> None:
        """Send one request, wait for the head of its reply; read data follows it. The lock is held."""
        while self._held:
            if self._cancelling:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._changed.wait()
        self._cookie = (self._cookie + 1) & 0xFFFF_FFFF
        head = _REQUEST.pack(_REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        try:
            self._send([memoryview(head), *views])
            magic, code, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        except OSError:
            # Half a message may be under way: nothing that comes later could be trusted.
            self._socket.close()
            raise
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            self._socket.close()
            raise OSError(errno.EPROTO, f"the NBD server of disk {self._name} answers nonsense")
        if code:
            known = code if code in errno.errorcode else errno.EIO
            raise OSError(known, os.strerror(known))

    def _send(self, views: list[memoryview]) -> None:
        while views:
            sent = self._socket.sendmsg(views[:_IOV_MAX])
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError(errno.ECONNRESET, "the NBD server has closed the connection")
            view = view[count:]
