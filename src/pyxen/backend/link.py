"""The host's end of a virtual network interface: where frames go and come from."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pyxen.backend import headers

# linux/virtio_net.h, linux/if_tun.h
_VNET = struct.Struct("<BBHHHH")
_NEEDS_CSUM, _DATA_VALID = 1, 2
_GSO_NONE, _GSO_TCPV4, _GSO_TCPV6, _GSO_ECN = 0, 1, 4, 0x80
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
_TUNSETQUEUE, _IFF_ATTACH_QUEUE, _IFF_DETACH_QUEUE = 0x400454D9, 0x0200, 0x0400
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
FRAME_MAX = 65535 + 18
_LENGTH = struct.Struct(">I")


class Offload(NamedTuple):
    """What is left to do for a frame, or need not be done.

    ``blank``: the checksum is the pseudo-header's only. ``segment``: this many bytes of TCP payload to a packet, 0 if
    it is to stay one. ``ipv6`` says of which kind it is then.
    """

    blank: bool = False
    validated: bool = False
    segment: int = 0
    ipv6: bool = False


PLAIN = Offload()


class Link(Protocol):
    """One queue of the host's end."""

    def fileno(self) -> int:
        """Readable when ``receive`` has something."""
        ...

    @property
    def segments(self) -> bool:
        """Takes frames that are yet to be cut into packets."""
        ...

    @property
    def unsent(self) -> bool:
        """A part of a frame waits for room: ``receive`` is to be called when ``fileno`` is writable."""
        ...

    def accept(self, *, blank: bool, tso4: bool, tso6: bool) -> None:
        """What the guest can take; until then nothing but plain frames comes."""
        ...

    def use(self, active: bool) -> None:
        """Whether this queue, of several, is served: frames go to those that are."""
        ...

    def send(self, pieces: Sequence[bytes | memoryview], offload: Offload) -> None:
        """One frame; the first piece holds all headers. Dropped where there's no room. Raises OSError."""
        ...

    def receive(self, buffer: bytearray) -> tuple[int, Offload] | None:
        """A frame into ``buffer`` (FRAME_MAX), its length; None if there's none now. Raises OSError."""
        ...

    def close(self) -> None: ...


class TapLink:
    """A tap device made with IFF_NO_PI and IFF_VNET_HDR: the kernel completes checksums and cuts segments."""

    segments = True
    unsent = False

    def __init__(self, fd: int, *, queues: int = 1) -> None:
        """``fd`` is one of the device's ``queues`` (made with IFF_MULTI_QUEUE, if there are several)."""
        self._fd = fd
        self._several = queues > 1
        self._active = True
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", _VNET.size))
        self._head = bytearray(_VNET.size)

    def fileno(self) -> int:
        return self._fd

    def accept(self, *, blank: bool, tso4: bool, tso6: bool) -> None:
        wanted = (_TUN_F_TSO4 if tso4 else 0) | (_TUN_F_TSO6 if tso6 else 0)
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _TUN_F_CSUM | wanted if blank else 0)

    def use(self, active: bool) -> None:
        if self._several and active != self._active:
            flags = _IFF_ATTACH_QUEUE if active else _IFF_DETACH_QUEUE
            fcntl.ioctl(self._fd, _TUNSETQUEUE, struct.pack("=16sH22x", b"", flags))
            self._active = active

    def send(self, pieces: Sequence[bytes | memoryview], offload: Offload) -> None:
        head = vnet_header(pieces[0], offload)
        try:
            os.writev(self._fd, [head, *pieces])
        except BlockingIOError:
            return

    def receive(self, buffer: bytearray) -> tuple[int, Offload] | None:
        try:
            count = os.readv(self._fd, [self._head, buffer])
        except BlockingIOError:
            return None
        flags, gso, _, size, _, _ = _VNET.unpack(self._head)
        kind = gso & ~_GSO_ECN
        cut = size if kind in (_GSO_TCPV4, _GSO_TCPV6) else 0
        offload = Offload(bool(flags & _NEEDS_CSUM), bool(flags & (_NEEDS_CSUM | _DATA_VALID)), cut, kind == _GSO_TCPV6)
        return count - _VNET.size, offload

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def vnet_header(head: bytes | memoryview, offload: Offload) -> bytes:
    """struct virtio_net_hdr for a frame that starts with ``head``. Raises ValueError if there's no checksum in it."""
    if not offload.blank and not offload.segment:
        return _VNET.pack(_DATA_VALID if offload.validated else 0, 0, 0, 0, 0, 0)
    place = headers.find(head)
    if place is None:
        raise ValueError("a frame without the checksum that is to be completed")
    gso = _GSO_NONE
    if offload.segment:
        gso = _GSO_TCPV6 if offload.ipv6 else _GSO_TCPV4
    return _VNET.pack(_NEEDS_CSUM, gso, place.headers, offload.segment, place.start, place.checksum)


class StreamLink:
    """A stream socket on which each frame follows its length (32 bits, big-endian): user-mode networks speak that.

    Checksums are completed here, in Python; segments are not cut.
    """

    segments = False

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream
        self._socket.setblocking(False)
        self._input = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def accept(self, *, blank: bool, tso4: bool, tso6: bool) -> None:
        """Nothing but plain frames ever comes this way."""

    def use(self, active: bool) -> None:
        """There is but one queue."""

    def send(self, pieces: Sequence[bytes | memoryview], offload: Offload) -> None:
        frame = bytearray().join(pieces)
        if offload.blank and (place := headers.find(frame)) is not None:
            headers.complete(frame, place)
        if not self._flush():
            return
        self._unsent += _LENGTH.pack(len(frame)) + frame
        self._flush()

    def receive(self, buffer: bytearray) -> tuple[int, Offload] | None:
        self._flush()
        while True:
            if len(self._input) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._input)
                if length > FRAME_MAX:
                    raise OSError(f"a frame of {length} bytes from the network's process")
                if len(self._input) >= _LENGTH.size + length:
                    buffer[:length] = self._input[_LENGTH.size : _LENGTH.size + length]
                    del self._input[: _LENGTH.size + length]
                    return length, Offload(validated=False)
            try:
                data = self._socket.recv(FRAME_MAX)
            except BlockingIOError:
                return None
            if not data:
                raise ConnectionResetError("the network's process has closed the connection")
            self._input += data

    def close(self) -> None:
        self._socket.close()

    def _flush(self) -> bool:
        """Send what is left of an earlier frame; whether there is room for another one."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        return not self._unsent
