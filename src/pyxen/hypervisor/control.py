"""``control.sock``: orders for a domain's process, as lines of JSON that look like QMP's.

    → {"execute": "pause", "arguments": {…}, "id": …}
    ← {"return": {…}, "id": …}     or {"error": {"desc": "…"}, "id": …}

Files are not named but handed over: a message that carries descriptors (SCM_RIGHTS, unix(7)) holds one line, and its
command gets them as the argument ``fds``. They are closed here when the command has been carried out, but for those
that it has taken out of the list.

A command of ``streams`` is answered in the same way and then keeps the connection for what it has to say.

Anyone who can open the socket (the user that the domain runs as, and root) may give orders.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from pyxen.errors import EngineError, InvalidRequest, PyxenError
from pyxen.hypervisor.loop import Loop

_LONGEST_LINE: Final = 1 << 20
_MOST_DESCRIPTORS: Final = 8
Command = Callable[..., object]
Stream = Callable[[socket.socket, Mapping[str, Any]], None]
"""Takes a connection over, with the command's arguments. Raises PyxenError to refuse: then the connection stays."""


@dataclass(frozen=True, slots=True)
class Later:
    """What a command returns that takes long: ``work`` runs in a thread of its own, and what it returns is the answer.

    ``done`` runs on the main loop afterwards, whether it went well or not. The caller's next line waits until then;
    other callers do not.
    """

    work: Callable[[], object]
    done: Callable[[], None]


class Control:
    """Listens at ``path``. A command is called with its arguments by name; what it returns is the answer."""

    def __init__(
        self, path: Path, loop: Loop, commands: Mapping[str, Command], streams: Mapping[str, Stream] | None = None
    ) -> None:
        self._path = path
        self._streams = streams or {}
        self.loop = loop
        self.commands = commands
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(16)
        self._callers: set[_Caller] = set()
        loop.selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        self.loop.selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        for caller in list(self._callers):
            caller.hang_up()

    def _accept(self, mask: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:  # it has gone again, or we are out of descriptors
            return
        caller = _Caller(self, accepted)
        self._callers.add(caller)

    def forget(self, caller: _Caller) -> None:
        self._callers.discard(caller)

    def stream(self, line: bytes) -> tuple[Stream, Mapping[str, Any]] | None:
        """The stream that ``line`` asks for, with its arguments; None if it asks for something else."""
        try:
            message = msgspec.json.decode(line, type=dict[str, Any])
            found, arguments = self._streams[message["execute"]], message.get("arguments", {})
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            return None
        return (found, arguments) if isinstance(arguments, dict) else None


class _Caller:
    """One connection. Answers are short, so they fit into the socket's buffer; a caller that never reads is dropped."""

    def __init__(self, control: Control, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        self._socket = accepted
        self._control = control
        self._lines: deque[tuple[bytes, list[int]]] = deque()
        self._rest = b""
        self._rest_fds: list[int] = []
        self._open = True
        self._listen()

    def hang_up(self) -> None:
        """Be done with it; what still runs for it runs on."""
        if not self._open:
            return
        self._open = False
        self._deafen()
        self._socket.close()
        _close_all([*self._rest_fds, *(fd for _, fds in self._lines for fd in fds)])
        self._lines.clear()
        self._control.forget(self)

    def _listen(self) -> None:
        self._control.loop.selector.register(self._socket, selectors.EVENT_READ, self._ready)

    def _deafen(self) -> None:
        if self._socket in self._control.loop.selector.get_map():
            self._control.loop.selector.unregister(self._socket)

    def _ready(self, mask: int) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 65536, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        *lines, rest = (self._rest + data).split(b"\n")
        # The kernel ends a read after a message with descriptors: they belong to the line that came last.
        if lines:
            self._lines.extend((line, []) for line in lines)
            self._lines[-len(lines)][1].extend(self._rest_fds)
            self._rest_fds = []
        (self._rest_fds if rest else self._lines[-1][1] if lines else self._rest_fds).extend(fds)
        self._rest = rest
        self._go_on()
        if self._open and (not data or len(rest) > _LONGEST_LINE):
            self.hang_up()

    def _go_on(self) -> None:
        """Carry out the lines that have come, up to one that takes long."""
        while self._open and self._lines:
            line, fds = self._lines.popleft()
            if (wanted := self._control.stream(line)) is not None:
                _close_all(fds)
                self._hand_over(*wanted)
                continue
            answer, result = _answer(self._control.commands, line, fds)
            if isinstance(result, Later):
                self._deafen()
                self._start(result, answer, fds)
                return
            _close_all(fds)
            self._say(answer)

    def _hand_over(self, stream: Stream, arguments: Mapping[str, Any]) -> None:
        """Give the connection to ``stream``, or go on with it if it is refused."""
        self._deafen()
        try:
            stream(self._socket, arguments)
        except PyxenError as error:
            self._say({"error": _told(error)})
            if self._open:
                self._listen()
            return
        self._open = False
        _close_all([*self._rest_fds, *(fd for _, fds in self._lines for fd in fds)])
        self._lines.clear()
        self._control.forget(self)

    def _start(self, job: Later, answer: dict[str, object], fds: list[int]) -> None:
        loop = self._control.loop

        def run() -> None:
            try:
                answer["return"] = job.work()
            except PyxenError as error:
                answer["error"] = _told(error)
            except OSError as error:
                answer["error"] = _told(EngineError(error.strerror or str(error)))
            except BaseException as error:
                answer["error"] = _told(EngineError(f"{type(error).__name__}: {error}"))
                raise
            finally:
                loop.call_soon(finish)

        def finish() -> None:
            _close_all(fds)
            job.done()
            if self._open:
                self._say(answer)
                if self._open:
                    self._listen()
                    self._go_on()

        threading.Thread(target=run, name="control", daemon=True).start()

    def _say(self, answer: dict[str, object]) -> None:
        try:
            self._socket.sendall(msgspec.json.encode(answer) + b"\n")
        except OSError:
            self.hang_up()


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _told(error: PyxenError) -> dict[str, str]:
    return {"desc": str(error), "code": error.code}


def _answer(commands: Mapping[str, Command], line: bytes, fds: list[int]) -> tuple[dict[str, object], object]:
    """The answer to a line, and what its command has returned."""
    try:
        message = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"error": {"desc": f"not a command: {error}"}}, None
    answer: dict[str, object] = {"id": message["id"]} if "id" in message else {}
    try:
        result = _execute(commands, message, fds)
    except PyxenError as error:
        answer["error"] = _told(error)
        return answer, None
    if not isinstance(result, Later):
        answer["return"] = result
    return answer, result


def _execute(commands: Mapping[str, Command], message: dict[str, Any], fds: list[int]) -> object:
    name, arguments = message.get("execute"), message.get("arguments", {})
    command = commands.get(name) if isinstance(name, str) else None
    if command is None or not isinstance(arguments, dict):
        raise InvalidRequest(f"there is no command {name!r}")
    if "fds" in arguments:
        raise InvalidRequest(f"command {name!r}: descriptors come beside a line, not in it")
    try:
        result = command(**arguments, **({"fds": fds} if fds else {}))
    except TypeError as error:
        raise InvalidRequest(f"command {name!r}: {error}") from error
    return {} if result is None else result
