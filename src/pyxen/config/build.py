"""From a domain's file and the words of a command line to a DomainConfig.

``load_file``, ``load_text`` and ``load_overrides_only`` are what ``xm create`` calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from pyxen.config.check import check
from pyxen.config.classic import ALIASES, REASONS, WITHOUT_EFFECT, asks_nothing
from pyxen.config.coerce import Context, coerce
from pyxen.config.decode import explain
from pyxen.config.fold import Value
from pyxen.config.keys import KEYS, Kind
from pyxen.config.model import DomainConfig
from pyxen.config.translate import translate
from pyxen.config.words import shown, unknown
from pyxen.config.xmfile import MAX_FILE, Parsed, Setting, parse, parse_value
from pyxen.errors import ConfigError

_LIST_KINDS = (Kind.DISKS, Kind.VIFS, Kind.SHARES, Kind.PCIS, Kind.USBS, Kind.WORDS, Kind.CPUS)
_LISTS = frozenset(key.name for key in KEYS.values() if key.kind in _LIST_KINDS)
_NUMBERS = frozenset(key.name for key in KEYS.values() if key.kind in (Kind.NUMBER, Kind.MIB))
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Loaded(NamedTuple):
    """A domain's description, ready to send to xend."""

    config: DomainConfig
    warnings: list[str]
    values: dict[str, Value]
    """What was read for each key, before it was understood; helper variables as well."""


def load_file(path: Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> Loaded:
    """Read the file at ``path``.

    ``overrides`` are words ``KEY=VALUE`` that beat the file; ``name`` defaults to the file's name up to its last
    dot; relative paths in the file are below ``base`` (the current folder, as in xm). Raises ConfigError.
    """
    return load_text(_read(path), str(path), overrides, base=base)


def load_text(text: str, source: str, overrides: Sequence[str] = (), *, base: Path | None = None) -> Loaded:
    """The same for the text of a file; ``source`` is what messages call it, and where the default name is from."""
    words = _overrides(overrides)
    parsed = parse(text, source, {key: setting.value for key, setting in words.items()})
    return _build(parsed, words, Path(source).stem, source, base)


def load_overrides_only(overrides: Sequence[str], *, base: Path | None = None) -> Loaded:
    """A description made of ``KEY=VALUE`` words alone; ``name`` defaults to the image's. Raises ConfigError."""
    words = _overrides(overrides)
    image = words["image"].value if "image" in words else None
    if "name" not in words and not (isinstance(image, str) and image):
        raise ConfigError("the domain's name is missing", key="name", hint="add name=NAME")
    return _build(Parsed({}, frozenset(), []), words, str(image), "command line", base)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a null byte"
        raise ConfigError(f"can't read it: {reason}", source=str(path)) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("this is not text in UTF-8", source=str(path), line=line) from None
    if text.lstrip()[:1] == "<" or re.match(r"\s*\(\s*vm\b", text):
        raise ConfigError(
            "Xen-API's XML and xend's S-expressions are not read by pyxen",
            source=str(path),
            hint='write KEY = VALUE lines: name = "web"',
        )
    return text


def _overrides(words: Iterable[str]) -> dict[str, Setting]:
    """The settings of ``KEY=VALUE`` words; a list key given twice has both entries. Raises ConfigError."""
    settings: dict[str, Setting] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(f"{shown(word)} is no KEY=VALUE word", hint="write it like memory=512")
        value = _override(key, text, word)
        earlier = settings.get(key)
        if key in _LISTS and earlier and isinstance(earlier.value, list) and isinstance(value, list):
            value = earlier.value + value
        settings[key] = Setting(value, shown(word))
    return settings


def _override(key: str, text: str, word: str) -> Value:
    if text.startswith("[") and (key in _LISTS or key not in KEYS):
        return parse_value(text, shown(word))
    if len(text) >= 2 and text[0] in "'\"" and text[0] == text[-1]:
        with suppress(ConfigError):  # then the quotes belong to the text: "a" b "c"
            text = str(parse_value(text, shown(word)))
    if key in _LISTS:
        return [text] if text or key == "vif" else []
    known = key in KEYS or key in ALIASES
    return int(text) if _DECIMAL.fullmatch(text) and (key in _NUMBERS or not known) else text


def _build(parsed: Parsed, words: Mapping[str, Setting], name: str, source: str, base: Path | None) -> Loaded:
    given = parsed.settings | dict(words)
    warnings = list(parsed.warnings)
    settings = translate(given, warnings.append)
    if settings.get("name") is None or settings["name"].value is None:
        settings["name"] = Setting(name, source)
    fields = _fields(settings, parsed.used, base, warnings)
    try:
        config = msgspec.convert(fields, DomainConfig)
        warnings += check(config)
    except msgspec.ValidationError as error:
        raise _placed(_with_value(explain(error), settings), settings, source) from None
    except ConfigError as error:
        raise _placed(error, settings, source) from None
    return Loaded(config, warnings, {key: setting.value for key, setting in given.items()})


def _fields(
    settings: Mapping[str, Setting], used: frozenset[str], base: Path | None, warnings: list[str]
) -> dict[str, object]:
    """The model's fields that are set; adds to ``warnings``."""
    fields: dict[str, object] = {}
    for key, setting in settings.items():
        if key not in KEYS:
            _not_ours(key, setting, key in used, warnings)
            continue
        found: list[str] = []
        try:
            value = coerce(KEYS[key], setting.value, Context(base, found.append))
        except ConfigError as error:
            raise setting.error(error.message, key=key, hint=error.hint) from None
        warnings += (f"{setting.place}: {warning}" for warning in found)
        if value is not None:
            fields[key] = value
    return fields


def _with_value(error: ConfigError, settings: Mapping[str, Setting]) -> ConfigError:
    setting = settings.get(error.key or "")
    if setting and isinstance(setting.value, str | int | float):
        error.message += f", not {shown(setting.value) if isinstance(setting.value, str) else setting.value}"
    return error


def _placed(error: ConfigError, settings: Mapping[str, Setting], source: str) -> ConfigError:
    """The error with the place of the key that is to blame."""
    setting = settings.get(error.key or "") or Setting(None, source)
    hint = error.hint
    if error.key == "name" and setting.source == source and setting.line is None:
        hint = 'the name was taken from the file\'s: write name = "web" or the like'
    return setting.error(error.message, key=error.key, hint=hint)


def _not_ours(key: str, setting: Setting, used: bool, warnings: list[str]) -> None:
    """Warn of a key that does nothing, unless it helps another (``vmid``) or asks for nothing."""
    if key in WITHOUT_EFFECT:
        if not asks_nothing(key, setting.value):
            reason = f" ({REASONS[key]})" if key in REASONS else ""
            warnings.append(f"{setting.place}: `{key}` has no effect in pyxen{reason}")
    elif not used and not key.startswith("_"):
        warnings.append(f"{setting.place}: {unknown('key', key, [*KEYS, *ALIASES, *WITHOUT_EFFECT])}")
