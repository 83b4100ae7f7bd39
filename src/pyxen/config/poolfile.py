"""A CPU pool's description: a file, as xm and xl have it, or words KEY=VALUE.

Keys are ``name``, ``cpus`` or ``nodes``, and ``sched``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyxen.config.cpulist import parse as parse_cpus
from pyxen.config.fold import Value
from pyxen.config.words import shown, unknown
from pyxen.config.xmfile import MAX_FILE, Setting, parse, parse_value
from pyxen.errors import ConfigError

_KEYS = ["name", "cpus", "nodes", "sched"]


class PoolDescription(NamedTuple):
    """What somebody wants a pool to be."""

    name: str
    cpus: str | None
    """A list of CPUs; None: any one that is free."""


def load_pool(file: Path | None, words: Sequence[str] = ()) -> PoolDescription:
    """The description in ``file``, where there is one, with ``words`` beating it. Raises ConfigError.

    Without ``name`` the file's own, up to its last dot, is taken.
    """
    settings = {} if file is None else parse(_read(file), str(file)).settings
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{shown(word)} is no KEY=VALUE word", hint='write it like name="fast" cpus=2-3')
        value = parse_value(text, shown(word)) if text[:1] in ("[", '"', "'") else text
        settings[key] = Setting(value, shown(word))
    for key, setting in settings.items():
        if key not in _KEYS:
            raise setting.error(unknown("key", key, _KEYS), key=key)
    if "sched" in settings and settings["sched"].value != "credit":
        raise settings["sched"].error("sched must be credit, the one there is", key="sched")
    if "cpus" in settings and "nodes" in settings:
        raise settings["nodes"].error("say either cpus or nodes", key="nodes")
    name = _text("name", settings["name"]) if "name" in settings else file.stem if file else ""
    if not name:
        raise ConfigError("the pool's name is missing", key="name", hint='add name="fast"')
    return PoolDescription(name, _cpus(settings))


def _cpus(settings: dict[str, Setting]) -> str | None:
    for key, prefix in (("cpus", ""), ("nodes", "nodes:")):
        if (setting := settings.get(key)) is None:
            continue
        items = setting.value if isinstance(setting.value, list | tuple) else [setting.value]
        text = ",".join(prefix + "".join(_word(key, item, setting).lower().split()) for item in items)
        try:
            parse_cpus(text, key)
        except ConfigError as error:
            raise setting.error(error.message, key=key, hint=error.hint) from None
        return text
    return None


def _word(key: str, value: Value, setting: Setting) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise setting.error(f"{key} must be a list of CPUs such as '2-3' or ['2', '3']", key=key)


def _text(key: str, setting: Setting) -> str:
    if isinstance(setting.value, str):
        return setting.value
    raise setting.error(f"{key} must be a text", key=key)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * MAX_FILE + 1).decode()
    except OSError as error:
        raise ConfigError(f"can't read it: {error.strerror}", source=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError("this is not text in UTF-8", source=str(path)) from None
