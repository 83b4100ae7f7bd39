"""Entries of ``p9``: read as xl writes them, and written so that they read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.config.model import Share
from pyxen.config.render import render_share
from pyxen.config.share import parse_share
from pyxen.errors import ConfigError


def test_as_xl_writes_them() -> None:
    assert parse_share("tag=src,security_model=none,path=/srv/src") == Share(tag="src", path="/srv/src")
    share = parse_share("tag=a.b-c, path=src,readonly=1, type=qemu,", base=Path("/srv"))
    assert share == Share(tag="a.b-c", path="/srv/src", readonly=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tag=src", "path is missing"),
        ("path=/srv", "tag is missing"),
        ("tag=a b,path=/srv", "p9.tag must be 1 to 31 letters"),
        ("tag=" + "a" * 32 + ",path=/", "p9.tag must be 1 to 31 letters"),
        ("tag=a,path=/,security_model=passthrough", "no security model 'passthrough'"),
        ("tag=a,path=/,readonly=yes", "readonly is 0 or 1"),
        ("tag=a,path=/a,b", "should be a pair"),
        ("tag=a,path=/,mode=1", "unknown option 'mode'"),
        ("/srv/src", "should be a pair"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_share(text)
    assert caught.value.key == "p9"


@given(
    st.from_regex(r"[A-Za-z0-9_.-]{1,31}", fullmatch=True),
    st.from_regex(r"/([a-zä =/]{0,20})?", fullmatch=True),
    st.booleans(),
)
def test_they_read_back(tag: str, path: str, readonly: bool) -> None:
    share = Share(tag=tag, path=path, readonly=readonly)
    assert parse_share(render_share(share)) == share


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_share(text)
    except ConfigError as error:
        assert error.key == "p9"
