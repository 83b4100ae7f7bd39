"""A child process that does something behind bars and tells how it went."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyxen.hypervisor import linux
from pyxen.hypervisor.jail import namespaces

IS_ROOT = os.geteuid() == 0
PRISONER = 234_567
"""Whom a domain's process becomes where the tests run as root."""
ORDINARY = 54_321
"""Who starts one without being root."""


@dataclass(frozen=True)
class Outcome:
    """``said``: what the action returned; ``error``: the class and errno of what it raised; ``signal``: its end."""

    said: Any = None
    error: tuple[str, int | None] | None = None
    signal: int | None = None


def run(action: Callable[[], Any], *, ordinary: bool = False) -> Outcome:
    """Fork; do ``action`` in the child, which writes to a pipe what it returns (as JSON) or raises."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() of a process with threads: the child has one
        child = os.fork()
    if child == 0:
        _be_child(action, writer, ordinary)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Outcome(signal=os.WTERMSIG(status))
    assert text, f"the child ended with {status} and without a word"
    said, error = json.loads(text)
    return Outcome(said, (error[0], error[1]) if error else None)


def _be_child(action: Callable[[], Any], writer: int, ordinary: bool) -> None:
    """Never returns: nothing of the tests' may run twice."""
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.dup2(writer, 2)  # which the jail leaves open
        if ordinary and IS_ROOT:
            os.setgroups([])
            os.setresgid(ORDINARY, ORDINARY, ORDINARY)
            os.setresuid(ORDINARY, ORDINARY, ORDINARY)
            linux.prctl(4, 1)  # PR_SET_DUMPABLE: its own /proc files are its own, as after an execve
        try:
            answer = [action(), None]
        except Exception as error:
            answer = [None, [type(error).__name__, getattr(error, "errno", None) or str(error)]]
        os.write(2, json.dumps(answer).encode())
    finally:
        os._exit(0)


@contextmanager
def folder(*, ordinary: bool) -> Iterator[Path]:
    """A folder of that user's, in one that all may pass: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="pyxen-jail-"))
    try:
        if IS_ROOT and ordinary:
            os.chown(path, ORDINARY, ORDINARY)
        yield path
    finally:
        shutil.rmtree(path)


def user_namespaces() -> bool:
    """Does this host let ordinary users make them?"""
    return run(namespaces.unshare, ordinary=True).error is None
