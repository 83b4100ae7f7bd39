"""A file that grows under another name, and gets its own when it is whole. Blocking."""

from __future__ import annotations

import os
from pathlib import Path

from pyxen.errors import InvalidRequest


def part_path(path: Path, tag: str) -> Path:
    """Where ``path`` grows; the first eight letters of ``tag`` tell it from other parts of the same file."""
    return path.with_name(f".{path.name}.{tag[:8]}.part")


def open_part(part: Path, path: Path) -> int:
    """Make the part of ``path``, for this user alone; its descriptor. Raises InvalidRequest."""
    try:
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error


def name_part(part: Path, path: Path) -> None:
    """Put the whole part in the place of ``path``. Raises InvalidRequest."""
    try:
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror}") from error
