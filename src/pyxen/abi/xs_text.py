"""xenstore's values as text, as xenstore-read shows and xenstore-write takes them (tools' sanitise_value).

Printable ASCII stays as it is; a backslash is doubled, tab, newline and return are ``\\t``, ``\\n`` and ``\\r``, bytes
below 8 are three octal digits, all others ``\\xNN``. What was escaped is got back whole.
"""

from __future__ import annotations

import re
from typing import Final

_SHORT: Final = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x5C: "\\\\"}
_LETTERS: Final = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.)|$)", re.DOTALL)


def _of_byte(byte: int) -> str:
    if byte in _SHORT:
        return _SHORT[byte]
    if 0x20 <= byte <= 0x7E:
        return chr(byte)
    return f"\\{byte:03o}" if byte < 0o10 else f"\\x{byte:02x}"


_TABLE: Final = [_of_byte(byte) for byte in range(256)]


def escape(value: bytes) -> str:
    """The text that shows ``value``."""
    return "".join([_TABLE[byte] for byte in value])


def unescape(text: str) -> bytes:
    """The value that ``text`` shows. Characters that are no ASCII stand for their UTF-8, as typed on a terminal.

    A backslash before anything else than an escape stands for what follows; at the very end for nothing.
    """

    def meant(match: re.Match[bytes]) -> bytes:
        if match[1] is not None:
            return bytes([int(match[1], 16)])
        if match[2] is not None:
            return bytes([int(match[2], 8) & 0xFF])
        other = match[3] or b""
        return _LETTERS.get(other, other)

    return _ESCAPE.sub(meant, text.encode("utf-8", "surrogateescape"))
