"""A stand-in for xend's HTTP side: answers what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from pyxen.api import Domain, PowerState, Problem

WEB = Domain(
    domid=3,
    name="web",
    uuid="00000000-0000-4000-8000-000000000003",
    power_state=PowerState.RUNNING,
    state="-b----",
    managed=False,
    memory_mib=256,
    maxmem_mib=256,
    vcpus=1,
    maxvcpus=2,
    cpu_time_s=1.64,
    created_at=1.0e9,
    started_at=1.0e9,
)


def problem(status: int, code: str, detail: str, **more: Any) -> tuple[int, bytes]:
    return status, msgspec.json.encode(Problem(title="", status=status, detail=detail, code=code, **more))


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler], None] | tuple[int, bytes] | msgspec.Struct | bytes


@dataclass
class Stub:
    """Serves on ``path`` while it is entered; a list of answers is given one after the other."""

    path: Path
    answers: dict[str, Answer | list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Stub:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stub.connections += 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {key.lower(): value for key, value in self.headers.items()}
                stub.requests.append(Request(self.command, self.path, headers, body))
                send(self, stub.next(f"{self.command} {self.path}"))

            do_GET = do_POST = do_DELETE = do_PUT = answer

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.path.unlink(missing_ok=True)
        self._server = Server(str(self.path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def next(self, key: str) -> Answer:
        answer = self.answers.get(key, problem(404, "not-found", f"the test has no answer to {key}"))
        if isinstance(answer, list):
            return answer.pop(0) if len(answer) > 1 else answer[0]
        return answer


def send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    if callable(answer):
        answer(handler)
        return
    if isinstance(answer, msgspec.Struct):
        answer = msgspec.json.encode(answer)
    status, body = answer if isinstance(answer, tuple) else (200, answer)
    handler.send_response(status)
    if status != 204:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def chunks(*lines: bytes, end: bool = True) -> Callable[[BaseHTTPRequestHandler], None]:
    """A streamed body; without ``end`` the connection breaks off."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for line in lines:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        if end:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """End the connection without an answer."""
    handler.close_connection = True
