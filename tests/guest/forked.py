"""In the test host starting Python takes seconds: there ``xm`` and ``xend`` are forks of the test.

Each is a process with its own arguments, environment and streams all the same; only its program is not loaded anew.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

IN_TEST_HOST = "PYXEN_TEST_HOST" in os.environ
_XEND = "pyxen.xend"
_MODULES = {"xm": "pyxen.xm.__main__", "xend": f"{_XEND}.__main__"}
_POPEN = subprocess.Popen


def program(argv: Sequence[str], environ: Mapping[str, str]) -> Callable[[], None] | None:
    """What runs this command in a process that has been forked, for ``preexec_fn``; None: it must be executed."""
    name = Path(argv[0]).name
    if not IN_TEST_HOST or name not in _MODULES:
        return None
    main = import_module(_MODULES[name]).main
    if name == "xm":
        _load_what_it_will_need(argv[1:])
    else:
        import_module("pyxen.xend.daemon")

    def run() -> None:
        if name == "xend":
            vars(subprocess)["Popen"] = _Fork
        os.environ.clear()
        os.environ.update(environ)
        _become(argv, main)

    return run


class _Fork(subprocess.Popen[bytes]):
    """``python -m pyxen.xend …`` as a fork too; everything else as ever."""

    def __init__(self, argv: list[str], *, pass_fds: Sequence[int] = (), **options: Any) -> None:
        if argv[1:3] == ["-m", _XEND]:
            main = import_module(f"{_XEND}.__main__").main
            options["preexec_fn"] = lambda: _become([_XEND, *argv[3:]], main, pass_fds)
        super().__init__(argv, pass_fds=pass_fds, **options)


def _become(argv: Sequence[str], main: Callable[[], None], kept: Sequence[int] = ()) -> None:
    """Be this program, in a process that has just been forked."""
    gc.freeze()
    # This also tells whoever waits for the program to be executed that it has been. The numbers stay taken: objects of
    # the test's that are forgotten later close them.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in (null, *kept):
            os.dup2(null, fd, inheritable=False)
    faulthandler.enable(2)
    if argv[0] == _XEND:
        vars(subprocess)["Popen"] = _POPEN
    # As a new interpreter has them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    sys.argv = list(argv)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _load_what_it_will_need(words: Sequence[str]) -> None:
    import pyxen.client  # noqa: F401  also a name of it loads more
    from pyxen.xm.cli import SUMMARIES, cli

    for word in words:
        if word in SUMMARIES:
            cli.get_command(None, word)  # type: ignore[arg-type]
            return
