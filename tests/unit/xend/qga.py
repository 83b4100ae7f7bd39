"""A stand-in for QEMU's guest agent: its protocol, with commands and files of this machine below a folder."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from pyxen.abi.qga import DELIMITER

_SYNC = "guest-sync-delimited"


class StandIn:
    """Answers as the agent does. What would change this machine it only notes, in ``told``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.forbidden: set[str] = set()
        self.answers: dict[str, object] = {}
        """What it says to these commands, whatever they ask."""
        self.noise = b""
        """Said before the first answer."""
        self.silent = False
        self.frozen = False
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._done: dict[int, asyncio.Task[tuple[bytes, bytes]]] = {}
        self._files: dict[int, Any] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                before, delimiter, rest = line.rpartition(DELIMITER)
                if delimiter and before:
                    writer.write(b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n')
                request = msgspec.json.decode(rest)
                if self.silent:
                    continue
                answer = await self.answer(request["execute"], request.get("arguments", {}))
                if answer is None:
                    continue
                if "id" in request:
                    answer["id"] = request["id"]
                mark = self.noise + DELIMITER if request["execute"] == _SYNC else b""
                writer.write(mark + msgspec.json.encode(answer) + b"\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def answer(self, command: str, words: dict[str, Any]) -> dict[str, Any] | None:
        if command in self.forbidden or (self.frozen and command not in (_SYNC, *_WHILE_FROZEN)):
            words = {"class": "CommandNotFound", "desc": f"Command {command} has been disabled"}
            return {"error": words}
        if command in self.answers:
            return {"return": self.answers[command]}
        handler = getattr(self, "_" + command.removeprefix("guest-").replace("-", "_"), None)
        try:
            if handler is not None:
                return {"return": await handler(**{key.replace("-", "_"): value for key, value in words.items()})}
        except OSError as error:
            return {"error": {"class": "GenericError", "desc": f"failed to do it: {error.strerror}"}}
        self.told.append((command, words))
        return None if command == "guest-shutdown" else {"return": {}}

    async def _sync_delimited(self, id: int) -> int:
        return id

    async def _exec(self, path: str, arg: list[str], env: list[str], input_data: str, capture_output: bool) -> object:
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            path, *arg, env=dict(word.split("=", 1) for word in env), stdin=pipe, stdout=pipe, stderr=pipe, cwd="/"
        )
        self._running[process.pid] = process
        self._done[process.pid] = asyncio.create_task(process.communicate(base64.b64decode(input_data)))
        return {"pid": process.pid}

    async def _exec_status(self, pid: int) -> object:
        process = self._running[pid]
        if not self._done[pid].done():
            return {"exited": False}
        out, err = self._done[pid].result()
        status = process.returncode or 0
        ended = {"signal": -status} if status < 0 else {"exitcode": status}
        data = {"out-data": base64.b64encode(out).decode(), "err-data": base64.b64encode(err).decode()}
        return {"exited": True, **ended, **data}

    async def _file_open(self, path: str, mode: str) -> int:
        flags = os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.fdopen(os.open(path, flags, 0o666), f"{mode}b", buffering=0)
        self._files[file.fileno()] = file
        return int(file.fileno())

    async def _file_close(self, handle: int) -> object:
        self._files.pop(handle).close()
        return {}

    async def _file_seek(self, handle: int, offset: int, whence: int) -> object:
        return {"position": self._files[handle].seek(offset, whence), "eof": False}

    async def _file_read(self, handle: int, count: int) -> object:
        data = self._files[handle].read(count)
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": not data}

    async def _file_write(self, handle: int, buf_b64: str) -> object:
        return {"count": self._files[handle].write(base64.b64decode(buf_b64)), "eof": False}

    async def _fsfreeze_status(self) -> str:
        return "frozen" if self.frozen else "thawed"

    async def _fsfreeze_freeze(self) -> int:
        self.frozen = True
        return 1

    async def _fsfreeze_thaw(self) -> int:
        self.frozen = False
        return 1

    def end(self) -> None:
        """End what runs still."""
        for process in self._running.values():
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)


_WHILE_FROZEN = ("guest-fsfreeze-status", "guest-fsfreeze-thaw")
