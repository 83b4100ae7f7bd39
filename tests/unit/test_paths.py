"""Where pyxen's folders are, by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.errors import InvalidRequest
from pyxen.paths import find_roots

USER = 54_321


@pytest.mark.parametrize(
    ("environ", "uid", "state", "run"),
    [
        ({}, 0, "/var/lib/xend", "/run/xend"),
        ({"PYXEN_ROOT": "/srv/x"}, 0, "/srv/x/state", "/srv/x/run"),
        ({"PYXEN_ROOT": "/srv/x", "HOME": "/home/u"}, USER, "/srv/x/state", "/srv/x/run"),
        ({"HOME": "/home/u"}, USER, "/home/u/.local/state/pyxen", "/home/u/.local/state/pyxen/run"),
        (
            {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1"},
            USER,
            "/home/u/.local/state/pyxen",
            "/run/user/1/pyxen",
        ),
        ({"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}, USER, "/s/pyxen", "/r/pyxen"),
    ],
)
def test_folders(environ: dict[str, str], uid: int, state: str, run: str) -> None:
    roots = find_roots(environ, uid=uid)
    assert (roots.state, roots.run) == (Path(state), Path(run))


def test_a_folder_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no home folder for ~nobody-of-that-name") as refused:
        find_roots({"PYXEN_ROOT": "~nobody-of-that-name/x"}, uid=USER)
    assert refused.value.hint == "Set HOME or PYXEN_ROOT to a folder."
