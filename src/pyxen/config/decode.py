"""From JSON, or from what JSON decodes to, to a DomainConfig; and msgspec's complaints in a user's words."""

from __future__ import annotations

import re

import msgspec

from pyxen.config.keys import KEYS, PARTS, expected
from pyxen.config.model import DomainConfig, encode
from pyxen.config.words import cut, unknown
from pyxen.errors import ConfigError

_PLACE = re.compile(r"(?P<what>.*) - at `(?P<path>[^`]*)`(?: in `\$[^`]*`)?", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)


def decode(data: bytes | object) -> DomainConfig:
    """The description in ``data``: JSON text or bytes, or an object that JSON decodes to.

    Types and ranges are checked here; what spans several keys is for :func:`pyxen.config.check.check`.
    Raises ConfigError, with ``key`` where one is to blame, and nothing else.
    """
    try:
        if isinstance(data, bytes | bytearray | memoryview | str):
            return msgspec.json.decode(data, type=DomainConfig)
        config = msgspec.convert(data, DomainConfig)
        encode(config)  # half a surrogate pair can't be stored
        return config
    except msgspec.ValidationError as error:
        raise explain(error) from None
    except UnicodeError:
        raise ConfigError("a domain's description must be text in UTF-8") from None
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"a domain's description must be JSON: {error}") from None


def explain(error: msgspec.ValidationError, where: str = "") -> ConfigError:
    """The same complaint, naming the key as a user knows it; ``where`` is the key that was being converted."""
    match = _PLACE.fullmatch(str(error))
    what = match["what"] if match else str(error)
    path = where + (match["path"].removeprefix("$") if match else "")
    path = path.removeprefix(".")
    bare = re.sub(r"\[[^]]*\]", "", path)
    key = bare.partition(".")[0]
    if field := _FIELD.fullmatch(what):
        return _field(field[1] == "missing required", field[2], path, bare)
    if not path or path == "key":
        return ConfigError("a domain's description must be an object of keys and values")
    expects = expected(bare)
    message = f"{path} must be {expects}" if expects else f"{path}: {what}"
    return ConfigError(message, key=key)


def _field(missing: bool, name: str, path: str, bare: str) -> ConfigError:
    prefix = f"{path}: " if path else ""
    key = bare.partition(".")[0] or name
    if missing:
        return ConfigError(f"{prefix}{name} is missing", key=key)
    known = [part.rpartition(".")[2] for part in PARTS if part.rpartition(".")[0] == bare] if bare else list(KEYS)
    return ConfigError(f"{prefix}{unknown('key', name, known)}", key=cut(key))
