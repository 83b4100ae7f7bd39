"""``python -m tests.testhost COMMAND…`` runs a command in the test host; without one, a shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyxen.errors import PyxenError
from tests.testhost.machine import boot_shell, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.testhost", description=__doc__)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=600, metavar="S")
    parser.add_argument("--file", action="append", default=[], metavar="HERE:THERE", help="put a file into the host")
    parser.add_argument("--console", action="store_true", help="show the host's own console at the end")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    files = {there: Path(here) for here, _, there in (each.partition(":") for each in options.file)}
    try:
        if not options.command:
            return boot_shell(files=files, cpus=options.cpus, memory_mib=options.memory)
        done = run(
            options.command,
            files=files,
            cpus=options.cpus,
            memory_mib=options.memory,
            timeout_s=options.timeout,
            live=True,
        )
    except PyxenError as error:
        print(f"Error: {error}", *([error.hint] if error.hint else []), sep="\n", file=sys.stderr)
        return 1
    if options.console or done.status is None:
        print(done.console, file=sys.stderr)
    return 1 if done.status is None else done.status


if __name__ == "__main__":
    sys.exit(main())
