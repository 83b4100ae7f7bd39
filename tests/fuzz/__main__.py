"""``python -m tests.fuzz TARGET COUNT SEED``; ``--episode N`` begins at that one, to see a fault again."""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.fuzz.harness import Found, run
from tests.fuzz.targets import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*KINDS, "all"])
    parser.add_argument("count", type=int)
    parser.add_argument("seed", nargs="?", default="0")
    parser.add_argument("--episode", type=int, default=0)
    options = parser.parse_args()
    for name in KINDS if options.target == "all" else [options.target]:
        try:
            print(run(name, KINDS[name], options.count, options.seed, episode=options.episode), flush=True)
        except Found as found:
            traceback.print_exception(found.__cause__)
            print(found, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
