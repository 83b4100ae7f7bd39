"""In the test host starting Python takes seconds: there ``xm`` and ``xend`` are forks of the test.

Each is a process with its own arguments, environment and streams all the same; only its program is not loaded anew.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

IN_TEST_HOST = "PYXEN_TEST_HOST" in os.environ
_MODULES = {"xm": "pyxen.xm.__main__", "xend": "pyxen.xend.__main__"}
_FILES = 4096


def program(argv: Sequence[str], environ: Mapping[str, str]) -> Callable[[], None] | None:
    """What runs this command in a process that has been forked, for ``preexec_fn``; None: it must be executed."""
    name = Path(argv[0]).name
    if not IN_TEST_HOST or name not in _MODULES:
        return None
    main = import_module(_MODULES[name]).main
    if name == "xm":
        _load_what_it_will_need(argv[1:])

    def run() -> None:
        # This also tells whoever waits for the program to be executed that it has been.
        os.closerange(3, _FILES)
        os.environ.clear()
        os.environ.update(environ)
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
        finally:
            sys.stdout.flush()
            os._exit(status)

    return run


def _load_what_it_will_need(words: Sequence[str]) -> None:
    import pyxen.client  # noqa: F401  also a name of it loads more
    from pyxen.xm.cli import SUMMARIES, cli

    for word in words:
        if word in SUMMARIES:
            cli.get_command(None, word)  # type: ignore[arg-type]
            return
