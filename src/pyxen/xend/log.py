"""xend's log: lines a person can read and a script can split, in a file that never grows past its bounds.

    2026-11-23T20:40:23.512Z info     domain started domid=3 name=web engine=qemu

The time is UTC; values with spaces or quotes are JSON strings; a traceback follows its line, indented.
The :class:`Ring` keeps what Xen's own console ring would: what concerns domains and engines, for ``xm dmesg``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import BinaryIO, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from pyxen.errors import PyxenError

MAX_BYTES = 10 * 1024 * 1024
OLD_FILES = 2
_BLOCK_BYTES = 64 * 1024
_PLAIN = re.compile(r'[^\s"=\\\x00-\x1f\x7f]+')


class Ring(logging.Handler):
    """The last lines about domains and engines, with the seconds since xend's start."""

    def __init__(self, limit: int = 1000) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=limit)
        self._began = time.monotonic()

    def add(self, line: str) -> None:
        """Append one line, its time put before it."""
        self._lines.append(f"(XEN) [{time.monotonic() - self._began:12.6f}] {line}")

    def text(self) -> str:
        """All lines, the oldest first."""
        return "".join(f"{line}\n" for line in self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record).splitlines()[0])


class _OwnersFile(RotatingFileHandler):
    """A rotating file that only xend's user may read: command lines can hold secrets."""

    def _open(self) -> TextIO:  # type: ignore[override]
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8", errors="backslashreplace")


def open_log(path: Path, *, level: str = "info", foreground: bool = False) -> tuple[FilteringBoundLogger, Ring]:
    """Send this process's logging to ``path`` (10 MiB, two older files), and to stderr as well in the foreground.

    Called once, at the process's entry. Libraries that use :mod:`logging` end up in the same file.
    Raises PyxenError if the file can't be opened.
    """
    logging.raiseExceptions = False  # a full disk must not print tracebacks
    try:
        handlers: list[logging.Handler] = [_OwnersFile(path, maxBytes=MAX_BYTES, backupCount=OLD_FILES)]
    except OSError as error:
        raise PyxenError(
            f"cannot write the log {path}: {error.strerror}", hint="Set PYXEN_ROOT to a folder that you may write to."
        ) from error
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(_formatter(_render_line))
        root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in ("asyncio", "uvicorn", "websockets", "qemu.qmp"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return _logger(), _make_ring()


def tail_offset(file: BinaryIO, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin, found by reading backwards from its end."""
    position = file.seek(0, os.SEEK_END)
    if lines <= 0 or position == 0:
        return position
    file.seek(position - 1)
    # The newline that ends the last line ends no line before it.
    wanted = lines + (file.read(1) == b"\n")
    for block in _blocks_backwards(file, position):
        position -= len(block)
        count = block.count(b"\n")
        if count >= wanted:
            cut = len(block)
            for _ in range(wanted):
                cut = block.rindex(b"\n", 0, cut)
            return position + cut + 1
        wanted -= count
    return 0


def _blocks_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    while end > 0:
        start = max(end - _BLOCK_BYTES, 0)
        file.seek(start)
        yield file.read(end - start)
        end = start


def _logger() -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger("pyxen.xend"),
        processors=[_keep_exception, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    return logger


def _make_ring() -> Ring:
    ring = Ring()
    ring.setFormatter(_formatter(_render_message))
    for name in ("pyxen.xend", "pyxen.engine"):
        logger = logging.getLogger(name)
        for old in [handler for handler in logger.handlers if isinstance(handler, Ring)]:
            logger.removeHandler(old)
        logger.addHandler(ring)
    return ring


def _formatter(renderer: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(processors=[renderer])


def _keep_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """``log.exception`` sets a mere True; by the time a line is rendered the exception is no longer current."""
    if event.get("exc_info") is True:
        event["exc_info"] = sys.exc_info()
    return event


def _render_message(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    words = [_word(str(event.get("event", "")), bare=True)]
    words += [
        f"{key}={_word(value)}"
        for key, value in event.items()
        if not key.startswith("_") and key not in ("event", "exc_info", "stack_info")
    ]
    return " ".join(words)


def _render_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    record: logging.LogRecord = event["_record"]
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    line = f"{seconds}.{int(record.msecs):03d}Z {record.levelname.lower():<8} {_render_message(logger, method, event)}"
    failure = event.get("exc_info")
    if isinstance(failure, tuple) and failure[1] is not None:
        traceback = structlog.processors.ExceptionRenderer()(logger, method, {"exc_info": failure})["exception"]
        line += "".join(f"\n    {row}" for row in traceback.splitlines())
    return line


def _word(value: object, *, bare: bool = False) -> str:
    """A value that can't be taken for more than one, nor for a line of its own."""
    text = value if isinstance(value, str) else str(value)
    if bare:
        return " ".join(text.split())
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
