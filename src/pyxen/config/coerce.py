"""From the values of a file to those of the model, as users expect: ``"2"`` is a number, 1 is true, "2G" is memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pyxen.config.cpulist import ALL
from pyxen.config.disk import parse_disk
from pyxen.config.fold import Value
from pyxen.config.keys import Key, Kind
from pyxen.config.pci import parse_pci
from pyxen.config.share import parse_share
from pyxen.config.sizes import parse_mib
from pyxen.config.usb import parse_usb
from pyxen.config.vif import parse_vif
from pyxen.config.words import Warn, absolute, nearest, shown
from pyxen.errors import ConfigError

_INTEGER = re.compile(r"\s*[+-]?(?:0[xX][0-9a-fA-F]{1,16}|0[oO][0-7]{1,22}|[0-9]{1,19})\s*", re.ASCII)
_FLAGS = {
    **dict.fromkeys(("1", "yes", "y", "true", "on"), True),
    **dict.fromkeys(("0", "no", "n", "false", "off", ""), False),
}


class Context(NamedTuple):
    """What reading a value needs to know besides the value."""

    base: Path | None
    """Relative paths are below it; None: the current folder."""
    warn: Warn


def coerce(key: Key, value: Value, context: Context) -> object:
    """The model's value for ``key = value``, or None where that means *not set*. Raises ConfigError."""
    return None if value is None else _READERS[key.kind](key, value, context)


def wrong(key: Key, value: Value) -> ConfigError:
    """``memory must be a number of MiB …, not 'abc'``, with the nearest choice as the hint."""
    text = shown(value) if isinstance(value, str) else _name(value)
    meant = nearest(value, list(key.choices)) if isinstance(value, str) and key.choices else None
    hint = f"did you mean {meant!r}?" if meant else f"for instance: {key.example}"
    return ConfigError(f"{key.name} must be {key.expects}, not {text}", key=key.name, hint=hint)


def _name(value: Value) -> str:
    if isinstance(value, list | tuple):
        return "a list"
    return str(value)


def _text(key: Key, value: Value, context: Context) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # name = 5, root = 0
    raise wrong(key, value)


def _word(key: Key, value: Value, context: Context) -> str | None:
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]  # xl takes serial = ["pty"]
    word = _text(key, value, context).strip()
    if key.choices and word:
        word = word.lower()
        if word not in key.choices:
            raise wrong(key, value)
    if key.name == "uuid":
        word = _dashed(word.lower())
    return word or None


def _dashed(uuid: str) -> str:
    digits = uuid.replace("-", "")
    if len(digits) != 32:
        return uuid
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _path(key: Key, value: Value, context: Context) -> str | None:
    path = _text(key, value, context)
    return absolute(path, context.base) if path else None


def _number(key: Key, value: Value, context: Context) -> int | None:
    if isinstance(value, str):
        if not value.strip():
            return None
        if _INTEGER.fullmatch(value):
            return int(value, 0 if "x" in value.lower() or "o" in value.lower() else 10)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    elif isinstance(value, float) and value.is_integer():
        return int(value)
    raise wrong(key, value)


def _mib(key: Key, value: Value, context: Context) -> int | None:
    if isinstance(value, str) and value.strip() and not _INTEGER.fullmatch(value):
        try:
            return parse_mib(value)
        except ConfigError as error:
            raise ConfigError(f"{key.name}: {error.message}", key=key.name, hint=error.hint) from None
    return _number(key, value, context)


def _flag(key: Key, value: Value, context: Context) -> bool:
    if isinstance(value, str) and (flag := _FLAGS.get(value.strip().lower())) is not None:
        return flag
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise wrong(key, value)


def _list(key: Key, value: Value) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise wrong(key, value)
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) != len(items):
        odd = next(item for item in items if not isinstance(item, str))
        raise ConfigError(
            f"{key.name} must be {key.expects}; it has {_name(odd)} in it", key=key.name, hint=f"write {key.example}"
        )
    return texts


def _words(key: Key, value: Value, context: Context) -> list[str]:
    words = [word.strip().lower() for word in _list(key, value)]
    for word in filter(None, words):
        if word not in key.choices:
            raise wrong(key, word)
    return [word for word in words if word]


def _cpus(key: Key, value: Value, context: Context) -> list[str]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    # xl takes cpus = [2, 3], and cpus = 2.
    texts = [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items]
    lists = ["".join(text.lower().split()) for text in _list(key, texts)]
    return [] if lists == [""] else [each or ALL for each in lists]


def _disks(key: Key, value: Value, context: Context) -> list[object]:
    texts = [] if value == "" else _list(key, value)
    return [parse_disk(text, base=context.base) for text in texts]


def _vifs(key: Key, value: Value, context: Context) -> list[object]:
    return [parse_vif(text, warn=context.warn) for text in _list(key, value)]


def _shares(key: Key, value: Value, context: Context) -> list[object]:
    texts = [] if value == "" else _list(key, value)
    return [parse_share(text, base=context.base) for text in texts]


def _pcis(key: Key, value: Value, context: Context) -> list[object]:
    texts = [] if value == "" else _list(key, value)
    return [parse_pci(text) for text in texts]


def _usbs(key: Key, value: Value, context: Context) -> list[object]:
    texts = [] if value == "" else _list(key, value)
    return [parse_usb(text, base=context.base) for text in texts]


_READERS: dict[Kind, Callable[[Key, Value, Context], object]] = {
    Kind.TEXT: _text,
    Kind.WORD: _word,
    Kind.PATH: _path,
    Kind.NUMBER: _number,
    Kind.MIB: _mib,
    Kind.FLAG: _flag,
    Kind.WORDS: _words,
    Kind.DISKS: _disks,
    Kind.VIFS: _vifs,
    Kind.SHARES: _shares,
    Kind.PCIS: _pcis,
    Kind.USBS: _usbs,
    Kind.CPUS: _cpus,
}
