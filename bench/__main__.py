"""``python -m bench [NAME …]``: run the benchmarks and print their ratios.

Each compares us with a peer in the same run, turn and turn about, so that a slow machine slows both. The figure is
the median over the runs, with the lowest and highest beside it. Nothing fails by being slow.
"""

from __future__ import annotations

import json
import platform
import sys
import time

from bench.cases import CASES as HERE
from bench.clone import clone
from bench.migrate import migration
from bench.run import run
from bench.scheduling import sched
from bench.testhost import testhost

CASES = {**HERE, "clone": clone, "migration": migration, "run": run, "sched": sched, "testhost": testhost}


def main() -> None:
    chosen = sys.argv[1:] or list(CASES)
    unknown = [name for name in chosen if name not in CASES]
    if unknown:
        sys.exit(f"Error: no benchmark {', '.join(unknown)}; there are: {', '.join(CASES)}")
    results = []
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        results += CASES[name]()
    print(f"\n{platform.node()}, {time.strftime('%Y-%m-%d')}\n")
    print(f"{'figure':<58} {'measured':>22} {'aim':>10}")
    for row in results:
        print(f"{row.what:<58} {row.measured:>22} {row.aim:>10}")
    print(json.dumps([vars(row) for row in results]), file=sys.stderr)


main()
