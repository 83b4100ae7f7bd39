"""What QEMU's guest agent answers, as :mod:`pyxen.abi.qga` has it. Nothing here does I/O.

A guest may send anything. Before the answer that says where a line begins all of it is thrown away; afterwards what is
no answer ends the conversation. Never is more kept than one line, and of that no more than is expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pyxen.abi.qga import DELIMITER
from pyxen.engine.events import parse_line
from pyxen.errors import EngineError

MOST_LINE: Final = 1 << 20
_MOST_SYNC: Final = 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    id: object
    """The request's; None from agents that don't repeat it."""
    value: Any
    error: str | None = None
    """Why there is no value."""
    kind: str = ""
    """The error's class."""


class Answers:
    """What a guest sends, piece by piece."""

    def __init__(self) -> None:
        self.most = MOST_LINE
        """Bytes that a line may have."""
        self._number: int | None = None
        self._data = bytearray()

    @property
    def synced(self) -> bool:
        return self._number is None

    def expect(self, number: int) -> None:
        """Wait for the answer to guest-sync-delimited with this number."""
        self._number = number

    def feed(self, data: bytes) -> list[Answer]:
        """The answers that are whole now. Raises EngineError for what is none."""
        self._data += data
        if not self.synced and not self._sync():
            return []
        answers = []
        while (end := self._data.find(b"\n")) >= 0:
            self._check(end)
            line = bytes(self._data[:end])
            del self._data[: end + 1]
            if line.strip():
                answers.append(_answer(line))
        self._check(len(self._data))
        return answers

    def _check(self, length: int) -> None:
        if length > self.most:
            raise EngineError("the guest's agent answered at too great length")

    def _sync(self) -> bool:
        """Find the answer that is waited for; what comes before it is thrown away."""
        while (end := self._data.find(b"\n")) >= 0:
            mark = self._data.rfind(DELIMITER, 0, end)
            line = bytes(self._data[mark + 1 : end]) if mark >= 0 and end - mark <= _MOST_SYNC else b""
            del self._data[: end + 1]
            if (found := parse_line(line)) is not None and found.get("return") == self._number:
                self._number = None
                return True
        mark = self._data.rfind(DELIMITER)
        keep = len(self._data) - mark if mark >= 0 else 0
        del self._data[: len(self._data) - (keep if keep <= _MOST_SYNC else 0)]
        return False


def _answer(line: bytes) -> Answer:
    found = parse_line(line)
    if found is None or ("return" in found) is ("error" in found):
        raise EngineError("the guest's agent does not keep to its protocol")
    if "return" in found:
        return Answer(found.get("id"), found["return"])
    error = found["error"] if isinstance(found["error"], dict) else {}
    return Answer(found.get("id"), None, printable(error.get("desc")) or "it does not say why", str(error.get("class")))


def printable(value: object, most: int = 300) -> str:
    """A word of the guest's that can be shown."""
    text = value if isinstance(value, str) else ""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])
