"""The parts of a disk's or an interface's text, and messages about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pyxen.errors import ConfigError

Warn: TypeAlias = Callable[[str], None]
"""Takes a warning, a sentence without a full stop."""


def cut(text: str) -> str:
    """A text for a message, which is not to fill the screen."""
    return text if len(text) <= 80 else text[:77] + "…"


def shown(text: str) -> str:
    """The same in quotes."""
    return repr(cut(text))


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that ``word`` most likely was meant to be."""
    import difflib  # only when somebody has mistyped something

    found = difflib.get_close_matches(word[:64].lower(), known, n=1, cutoff=0.65)
    return found[0] if found else None


def unknown(what: str, word: str, known: list[str]) -> str:
    """``unknown key 'memmory'; did you mean 'memory'?``"""
    meant = nearest(word, known)
    return f"unknown {what} {shown(word)}" + (f"; did you mean {meant!r}?" if meant else "")


def refuse(key: str, text: str, reason: str, hint: str) -> ConfigError:
    """An error about one entry of a list key."""
    return ConfigError(f"{key} {shown(text)}: {reason}", key=key, hint=hint)


def absolute(path: str, base: Path | None) -> str:
    """``path``, or where it lies below ``base`` (the current folder) when it is relative. Raises ConfigError."""
    if path.startswith("/"):
        return path
    try:
        return str((base or Path.cwd()) / path)
    except OSError:
        raise ConfigError(f"{shown(path)} is relative, and the current folder is gone") from None
