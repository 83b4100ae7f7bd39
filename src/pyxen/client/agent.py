"""A command in a guest, or a file of it, over a WebSocket."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect, unix_connect

from pyxen import agent_api, run_api
from pyxen.client import _calls
from pyxen.client.transport import Address, unreachable
from pyxen.errors import PyxenError, Unavailable

# Compression costs more than a local socket gains.
OPTIONS: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "close_timeout": 1.0}
CHUNK = 32 * 1024
_WINDOW, _COST_EACH = 1 << 18, 256


class Command:
    """Output by iterating, input by ``write``; the two may be used from two threads. Made by :meth:`Client.command`.

    It has started when the constructor returns. Leaving it hangs up on the command.
    """

    def __init__(
        self,
        address: Address,
        ref: str | None,
        request: agent_api.AgentRequest | run_api.RunRequest,
        told: Callable[[agent_api.AgentEvent], None] = lambda event: None,
    ) -> None:
        """``ref`` None, for a RunRequest: in a domain of its own, of which ``told`` hears before the command starts."""
        self._ref = ref
        self._socket = _connect(address, ref)
        self._over = False
        self.ended: agent_api.AgentEnded | None = None
        """How it has ended, once all of its output has been iterated over."""
        self._on_the_way: deque[int] = deque()
        self._moved = threading.Condition()
        try:
            self._send(msgspec.json.encode(request).decode())
            while (event := self._event(self._socket.recv())) is None or event.started is None:
                if event is not None:
                    told(event)
            self.started = event.started
        except ConnectionClosed as error:
            raise _gone() from error
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Pieces of output, each with 1 (standard output, or the file) or 2 (errors)."""
        try:
            while self.ended is None:
                message = self._socket.recv()
                if isinstance(message, bytes):
                    yield message[0], message[1:]
                elif (event := self._event(message)) is not None:
                    self._take(event)
        except ConnectionClosed as error:
            raise _gone() from error
        finally:
            self._over = True
            with self._moved:
                self._moved.notify_all()

    def write(self, data: bytes) -> None:
        """Give it input, as fast as it takes it; somebody must iterate over its output meanwhile.

        What it does not read any more is thrown away.
        """
        for start in range(0, len(data), CHUNK):
            chunk = data[start : start + CHUNK]
            with self._moved:
                # The library lets nothing be received while a message can't be sent, so only what xend keeps is sent.
                self._moved.wait_for(lambda: self._over or sum(self._on_the_way) < _WINDOW)
                self._on_the_way.append(len(chunk) + _COST_EACH)
            self._send(chunk)

    def end_input(self) -> None:
        """That was all of the input."""
        self._say(agent_api.AgentInput(end=True))

    def signal(self, number: int) -> None:
        """Send it and all in its process group a signal."""
        self._say(agent_api.AgentInput(signal=number))

    def resize(self, rows: int, columns: int) -> None:
        """Its terminal has another size now."""
        self._say(agent_api.AgentInput(rows=rows, columns=columns))

    def close(self) -> None:
        self._socket.close()

    def feed(self, pieces: Iterable[bytes]) -> None:
        """Write all pieces and end the input."""
        for piece in pieces:
            self.write(piece)
        self.end_input()

    def finish(self, stdin: Iterable[bytes] = ()) -> agent_api.ExecResult:
        """Give it all of its input while its output is collected."""
        feeding = threading.Thread(target=self.feed, args=(stdin,), name="command-input", daemon=True)
        feeding.start()
        output: dict[int, list[bytes]] = {1: [], 2: []}
        for stream, data in self:
            output[stream].append(data)
        feeding.join()
        assert self.ended is not None
        return agent_api.ExecResult(self.ended.status, b"".join(output[1]), b"".join(output[2]))

    def _take(self, event: agent_api.AgentEvent) -> None:
        self.ended = event.ended
        with self._moved:
            for _ in range(min(event.taken or 0, len(self._on_the_way))):
                self._on_the_way.popleft()
            self._moved.notify_all()

    def _say(self, message: agent_api.AgentInput) -> None:
        self._send(msgspec.json.encode(message).decode())

    def _send(self, message: bytes | str) -> None:
        try:
            self._socket.send(message)
        except ConnectionClosed:
            return  # it has ended; how, the output says

    def _event(self, message: str | bytes) -> agent_api.AgentEvent | None:
        return None if isinstance(message, bytes) else _calls.agent_event(message, self._ref)


def _connect(address: Address, ref: str | None) -> Any:
    uri = f"ws://{address.netloc}{_calls.agent_target(ref)}"
    try:
        if address.socket is not None:
            return unix_connect(str(address.socket), uri, legacy=True, **OPTIONS)
        return connect(uri, legacy=True, additional_headers=address.headers, **OPTIONS)
    except InvalidStatus as refused:
        raise refusal(refused, ref) from refused
    except (WebSocketException, EOFError) as error:
        raise Unavailable(f"xend has hung up ({address}): {error}") from error
    except OSError as error:
        raise unreachable(address, error) from error


def refusal(refused: InvalidStatus, ref: str | None) -> PyxenError:
    """Why xend did not take the connection."""
    return _calls.problem(refused.response.status_code, bytes(refused.response.body or b""), ref=ref)


def _gone() -> PyxenError:
    return Unavailable("the connection to xend was lost; the command in the guest has been hung up on")
