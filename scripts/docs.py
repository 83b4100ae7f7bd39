"""Write ``docs/reference/`` from the code; with ``--check``, only say which pages are out of date."""

from __future__ import annotations

import sys
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def pages() -> dict[str, str]:
    from pyxen.config.keys import reference_markdown as config
    from pyxen.xend.http.openapi import reference_markdown as api
    from pyxen.xm.reference import reference_markdown as xm

    return {"xm.md": xm(), "config.md": config(), "api.md": api()}


def main() -> None:
    stale = []
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                REFERENCE.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"Error: out of date: {', '.join(stale)}\nRun: make docs")


if __name__ == "__main__":
    main()
