from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.abi.xs_text import escape, unescape


@given(st.binary(max_size=64))
def test_what_was_escaped_is_got_back(value: bytes) -> None:
    text = escape(value)
    assert text.isascii()
    assert text.isprintable()
    assert unescape(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"two words", "two words"),
        (b"a\tb\nc\rd\\e", "a\\tb\\nc\\rd\\\\e"),
        (b"\0\x07\x08\x1b\x7f\xff", "\\000\\007\\x08\\x1b\\x7f\\xff"),
        (b"\x017", "\\0017"),
    ],
)
def test_as_xens_tools_do_it(value: bytes, text: str) -> None:
    assert escape(value) == text


def test_what_no_tool_prints() -> None:
    assert unescape("\\q\\") == b"q"
    assert unescape("\\xZ") == b"xZ"
    assert unescape("\u00e9") == b"\xc3\xa9"
