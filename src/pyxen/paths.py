"""Where pyxen keeps its files.

Two folders: *state* survives a reboot of the host (database, images, log), *run* does not (sockets, what belongs
to a running domain). ``PYXEN_ROOT`` moves both below one folder, so that several xends live side by side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyxen.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Roots:
    """The two folders of one xend."""

    state: Path
    run: Path

    @property
    def socket(self) -> Path:
        """xend's HTTP socket."""
        return self.run / "xend.sock"

    @property
    def token(self) -> Path:
        """The secret that callers over TCP present; readable by xend's user only."""
        return self.run / "token"

    @property
    def pidfile(self) -> Path:
        return self.run / "xend.pid"

    @property
    def domains(self) -> Path:
        """One folder for each running domain, named by its id."""
        return self.run / "domains"

    @property
    def database(self) -> Path:
        return self.state / "xend.db"

    @property
    def log(self) -> Path:
        return self.state / "xend.log"

    @property
    def images(self) -> Path:
        return self.state / "images"

    @property
    def disks(self) -> Path:
        """Writable layers over images' root disks, one for each domain's name."""
        return self.state / "disks"

    @property
    def snapshots(self) -> Path:
        """Snapshots of domains, in a folder for each UUID."""
        return self.state / "snapshots"

    @property
    def arriving(self) -> Path:
        """Journals of the disks that are made for domains that arrive."""
        return self.state / "arriving"

    @property
    def kernels(self) -> Path:
        """Cache of unpacked kernels, named by the digest of the packed file."""
        return self.state / "kernels"

    @property
    def settings(self) -> Path:
        return self.state / "xend.toml"


def find_roots(environ: Mapping[str, str] = os.environ, *, uid: int | None = None) -> Roots:
    """The folders that xend and xm of this user share, by environment and user id.

    Raises InvalidRequest for a user without a home folder whose environment doesn't say where to go instead.
    """
    if chosen := environ.get("PYXEN_ROOT"):
        root = _expanded(chosen).absolute()
        return Roots(state=root / "state", run=root / "run")
    if (os.geteuid() if uid is None else uid) == 0:
        return Roots(state=Path("/var/lib/xend"), run=Path("/run/xend"))
    base = environ.get("XDG_STATE_HOME")
    state = (Path(base) if base else _expanded(environ.get("HOME") or "~") / ".local/state") / "pyxen"
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Roots(state=state, run=Path(runtime) / "pyxen" if runtime else state / "run")


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or one whom no password file knows
        raise InvalidRequest(
            f"there is no home folder for {path}", hint="Set HOME or PYXEN_ROOT to a folder."
        ) from None
