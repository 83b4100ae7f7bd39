"""Folders of the host for a guest, as xl writes them: ``KEY=VALUE`` joined with commas.

tag=src,path=/srv/src,security_model=none     xl's own; there is only this model
tag=src,path=/srv/src,readonly=1              pyxen's own: the guest can't change it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pyxen.config.decode import explain
from pyxen.config.model import Share
from pyxen.config.words import absolute, refuse, shown, unknown

_HINT = "write 'tag=src,path=/srv/src'"
_KEYS = ["tag", "path", "readonly", "security_model", "type", "backend"]
_READONLY = {"1": True, "0": False}


def parse_share(text: str, *, base: Path | None = None) -> Share:
    """The Share that ``text`` describes; a relative path is below ``base`` (the current folder).

    Raises ConfigError.
    """
    fields: dict[str, Any] = {}
    for word in (part for part in text.split(",") if part.strip()):
        key, equals, value = word.partition("=")
        key = key.strip()
        if not equals:
            raise refuse("p9", text, f"{shown(word)} should be a pair, separated by an equals sign", _HINT)
        if key not in _KEYS:
            raise refuse("p9", text, unknown("option", key, _KEYS), _HINT)
        if key == "security_model":
            if value != "none":
                raise refuse("p9", text, f"there is no security model {shown(value)}", "write security_model=none")
        elif key == "readonly":
            if value not in _READONLY:
                raise refuse("p9", text, "readonly is 0 or 1", _HINT)
            fields[key] = _READONLY[value]
        elif key == "path":
            fields[key] = absolute(value, base)
        elif key == "tag":
            fields[key] = value
    try:
        return msgspec.convert(fields, Share)
    except msgspec.ValidationError as error:
        raise refuse("p9", text, explain(error, "p9").message, _HINT) from None
