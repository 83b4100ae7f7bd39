"""One domain's process: see process."""

from __future__ import annotations

import sys

from pyxen.errors import PyxenError
from pyxen.hypervisor.process import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PyxenError as error:
        print(error, *([error.hint] if error.hint else []), sep="\n", file=sys.stderr)  # noqa: T201
        sys.exit(1)
