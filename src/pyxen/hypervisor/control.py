"""``control.sock``: orders for a domain's process, as lines of JSON that look like QMP's.

    → {"execute": "pause", "arguments": {…}, "id": …}
    ← {"return": {…}, "id": …}     or {"error": {"desc": "…"}, "id": …}

Anyone who can open the socket (the user that the domain runs as, and root) may give orders.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pyxen.errors import InvalidRequest, PyxenError
from pyxen.hypervisor.loop import Loop

_LONGEST_LINE: Final = 1 << 20
Command = Callable[..., object]


class Control:
    """Listens at ``path``. A command is called with its arguments by name; what it returns is the answer."""

    def __init__(self, path: Path, loop: Loop, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._loop = loop
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
        self._loop.selector.unregister(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        for caller in list(self._callers):
            self._gone(caller)

    def _accept(self, mask: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:  # it has gone again, or we are out of descriptors
            return
        caller = _Caller(self, accepted)
        self._callers.add(caller)
        self._loop.selector.register(accepted, selectors.EVENT_READ, caller.ready)

    def _gone(self, caller: _Caller) -> None:
        self._callers.discard(caller)
        self._loop.selector.unregister(caller.socket)
        caller.socket.close()


class _Caller:
    """One connection. Answers are short, so they fit into the socket's buffer; a caller that never reads is dropped."""

    def __init__(self, control: Control, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        self.socket = accepted
        self._control = control
        self._rest = b""

    def ready(self, mask: int) -> None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self.socket.sendall(msgspec.json.encode(_answer(self._control.commands, line)) + b"\n")
        except OSError:
            data = b""
        if not data or len(self._rest) > _LONGEST_LINE:
            self._control._gone(self)


def _answer(commands: Mapping[str, Command], line: bytes) -> dict[str, object]:
    try:
        message = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"error": {"desc": f"not a command: {error}"}}
    answer: dict[str, object] = {"id": message["id"]} if "id" in message else {}
    try:
        answer["return"] = _execute(commands, message)
    except PyxenError as error:
        answer["error"] = {"desc": str(error), "code": error.code}
    return answer


def _execute(commands: Mapping[str, Command], message: dict[str, Any]) -> object:
    name, arguments = message.get("execute"), message.get("arguments", {})
    command = commands.get(name) if isinstance(name, str) else None
    if command is None or not isinstance(arguments, dict):
        raise InvalidRequest(f"there is no command {name!r}")
    try:
        result = command(**arguments)
    except TypeError as error:
        raise InvalidRequest(f"command {name!r}: {error}") from error
    return {} if result is None else result
