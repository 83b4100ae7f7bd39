"""Processes that run as a domain's own user."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from pyxen.errors import Unsupported


def as_user(uid: int | None, groups: Sequence[int] = ()) -> list[str]:
    """The words before a command that make it run as ``uid``, member of ``groups`` only, without any rights.

    None: as this process's own user. Raises Unsupported where setpriv is missing.
    """
    if uid is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Unsupported("setpriv is missing", hint="Install it: apt-get install util-linux")
    member = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    rights = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    return [setpriv, f"--reuid={uid}", f"--regid={uid}", *member, *rights, "--"]
