"""The tests of domains' lives, written for any engine, on the Xen engine: xm and its promises are the same there."""

from __future__ import annotations

from pathlib import Path

from tests.guest.host import CACHE
from tests.testhost import run

_CHOSEN = "login or coredump or managed or rename_restart or maxmem"
"""Each of them takes most of a minute there."""


def image_files() -> dict[str, Path]:
    """The image tiny, at the same place in the test host as here."""
    from pyxen.image.store import ImageStore

    store = ImageStore(CACHE / "images", CACHE / "kernels")
    CACHE.mkdir(parents=True, exist_ok=True)
    store.build("tiny", {}, force=False, progress=lambda step: None)
    places = [CACHE / "images" / "tiny", CACHE / "kernels"]
    return {str(path): path for place in places for path in place.rglob("*") if path.is_file()}


def test_lives_are_the_same_on_the_xen_engine() -> None:
    words = ["-v", "-x", "-p", "no:cacheprovider", "tests/guest/test_lifecycle.py", "-k", _CHOSEN]
    done = run(
        ["python", "-m", "pytest", *words],
        files=image_files(),
        environ={"PYXEN_TEST_CACHE": str(CACHE), "PYXEN_TEST_HOST": "1"},
        live=True,
    )
    assert done.status == 0, f"{done.output}\n{done.console}"
