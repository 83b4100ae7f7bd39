"""What two xends say to each other while a domain moves: messages and data over TLS, in frames.

A frame is its kind (1 byte: ``m`` a message, ``d`` a piece of the guest's state), the length of its body (4 bytes,
big-endian) and the body. A message's body is JSON of one of the types below, told apart by ``type``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from typing import TypeVar

import msgspec
from msgspec import Struct

from pyxen.errors import Conflict, EngineError, Unavailable
from pyxen.xend.saved import Head

PROTOCOL = 1
PORT = 8002
LONGEST = 1 << 20
"""Bytes of a frame's body at most."""
PIECE = 1 << 17
"""Bytes of the state that are read, sent and kept at once. What is under way when the guest is stopped has to arrive
while it stands still.
"""
_WINDOW = 1 << 19
"""Bytes that may be on their way through the network and in the other side's kernel; more where that is far."""
_LARGEST_WINDOW = 1 << 24
_FASTEST = 1_250_000_000
"""Bytes a second that a network carries: 10 Gbit/s."""
_RTT = struct.Struct("<68xI")  # struct tcp_info of linux/tcp.h, up to tcpi_rtt, in microseconds
ANSWER_S = 60.0
_CONNECT_S = 10.0
DEAD_AFTER_S = 20
_FRAME = struct.Struct(">cI")
_MESSAGE, _DATA = b"m", b"d"


class Fact(Struct, frozen=True):
    """A file of the host's that the domain needs on the other one as well."""

    what: str
    path: str
    size: int
    """Bytes of a file that is shared; of one that may be copied, those that the guest sees."""
    writable: bool = False
    token: str | None = None
    """A file beside it, made for this migration: who sees it sees the same folder."""
    vdev: str = ""
    format: str = ""
    """raw or qcow2, of one that may be copied if it isn't shared; empty: it may not."""
    allocated: int = 0
    """Bytes that a copy will take."""


class Offer(Struct, tag="offer", frozen=True, kw_only=True):
    """Take this domain; or with ``dry`` say whether you could."""

    protocol: int
    id: str
    head: Head
    accelerator: str
    paused: bool
    dry: bool = False
    cpu_flags: list[str]
    files: list[Fact]
    """With a ``format`` only if those that aren't shared are to be copied."""


class Refused(Struct, tag="refused", frozen=True):
    """It does not fit, or could not be started; each problem in a sentence."""

    problems: list[str]


class Ready(Struct, tag="ready", frozen=True):
    """The state may come."""

    copies: list[str] = []
    """The disks that are not shared, by vdev: they are made, and must be filled first."""


class Fill(Struct, tag="fill", frozen=True):
    """The first message of a connection that is one disk's: what follows is NBD, in frames of data."""

    protocol: int
    id: str
    vdev: str


class End(Struct, tag="end", frozen=True):
    """That was all of the state."""

    size: int


class Loaded(Struct, tag="loaded", frozen=True):
    """The domain is there, and waits."""


class Commit(Struct, tag="commit", frozen=True):
    """It is yours: let it run. Whoever says so never lets it run itself unless told that it did not arrive."""


class Running(Struct, tag="running", frozen=True):
    """It runs."""

    domid: int
    since_s: float = 0.0
    """For so many seconds."""


class Question(Struct, tag="question", frozen=True):
    """What has become of this migration? Whoever is asked gives up one that isn't committed before it answers."""

    protocol: int
    id: str


class Verdict(Struct, tag="verdict", frozen=True):
    """The domain has arrived for good, or never will."""

    arrived: bool


class Forget(Struct, tag="forget", frozen=True):
    """The domain is gone where it came from; nobody will ask any more."""

    id: str


Message = Offer | Refused | Ready | End | Loaded | Commit | Running | Question | Verdict | Forget | Fill
M = TypeVar("M", bound=Struct)


class Broken(Unavailable):
    """The connection is of no more use. Nothing is known of what the other side does now."""


class Misfit(EngineError):
    """The other side can't take the domain, for these reasons."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems) or "the other side gave up")
        self.problems = problems


class Link:
    """One connection. What it can't read, and every loss, raises Broken."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.json.Decoder(Message)
        if (connection := writer.get_extra_info("socket")) is not None:
            _notice_death(connection)
            _keep_little(connection)
        self.bear_silence()

    @property
    def peer(self) -> str:
        """The other side's address."""
        name = self._writer.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if name else "?"

    async def send(self, message: Message) -> None:
        await self._write(_MESSAGE, msgspec.json.encode(message))

    async def send_data(self, data: bytes | memoryview) -> None:
        """A piece of the state, at most LONGEST bytes."""
        await self._write(_DATA, data)

    async def receive(self) -> Message | bytes:
        """The next frame: a message, or a piece of the state."""
        try:
            kind, length = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
            if length > LONGEST or kind not in (_MESSAGE, _DATA):
                raise Broken("the other side does not speak this protocol")
            body = await self._reader.readexactly(length)
        except (OSError, EOFError, ssl.SSLError) as error:
            raise _broken(error) from error
        if kind == _DATA:
            return body
        try:
            message: Message = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Broken(f"the other side's message can't be read: {error}") from error
        return message

    async def expect(self, kind: type[M], timeout_s: float | None = ANSWER_S) -> M:
        """The next frame, which must be this message. Raises Broken; Misfit if the other side has refused or failed."""
        try:
            async with asyncio.timeout(timeout_s):
                found = await self.receive()
        except TimeoutError:
            raise Broken(f"the other side did not answer within {timeout_s:g} s") from None
        if isinstance(found, Refused):
            raise Misfit(found.problems)
        if not isinstance(found, kind):
            raise Broken(f"the other side said something else than {kind.__name__}")
        return found

    def bear_silence(self, seconds: int = DEAD_AFTER_S) -> None:
        """Take the other side for dead when it has taken nothing of what is sent for so long."""
        if (connection := self._writer.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)

    def cut(self) -> None:
        """Close it at once, whatever is still to be sent."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close it when all has been sent."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                await self._writer.wait_closed()

    async def _write(self, kind: bytes, body: bytes | memoryview) -> None:
        try:
            self._writer.write(_FRAME.pack(kind, len(body)))
            self._writer.write(body)
            await self._writer.drain()
        except OSError as error:
            raise _broken(error) from error


def _broken(error: Exception) -> Broken:
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return Broken(
            "the other host does not trust this one",
            hint="Here: xm peer show > here.pem; there: xm peer add NAME here.pem",
        )
    return Broken(f"the connection broke: {_words(error)}")


async def accept(connection: socket.socket, context: ssl.SSLContext) -> Link:
    """The link over a connection that another xend has made. Raises OSError; ssl.SSLError where it isn't trusted."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(PIECE)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection, ssl=context, ssl_handshake_timeout=_CONNECT_S
    )
    return Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def connect(host: str, port: int, context: ssl.SSLContext) -> Link:
    """A connection to another xend. Raises Unavailable, and Conflict where the two don't trust each other."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="", limit=PIECE)
    except ssl.SSLError as error:
        raise Conflict(
            f"{host} shows a certificate that is not trusted here",
            hint=f"On {host}: xm peer show > {host}.pem; here: xm peer add {host} {host}.pem",
        ) from error
    except TimeoutError:
        raise Unavailable(f"{host} does not answer on port {port}", hint=_LISTENING) from None
    except OSError as error:
        raise Unavailable(f"{host} can't be reached on port {port}: {_words(error)}", hint=_LISTENING) from error
    return Link(reader, writer)


_LISTENING = 'Does xend there take domains in? Its xend.toml should say: relocation = "0.0.0.0:8002"'


def _words(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the other side closed it"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


def _notice_death(connection: socket.socket) -> None:
    """A host that has lost its power closes no connection: have the kernel find out."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _keep_little(connection: socket.socket) -> None:
    """The kernel would keep megabytes that the other side's monitor has not read yet."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)
        (round_trip,) = _RTT.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))
        window = min(max(_WINDOW, round_trip * _FASTEST // 1_000_000), _LARGEST_WINDOW)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, window)
