"""A domain's TPM 2.0: swtpm, a process beside the monitor, as the same user. It ends when the monitor does."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from pyxen.engine.process import marker, start_daemon
from pyxen.engine.user import as_user
from pyxen.errors import EngineError, Unsupported


def check_tpm() -> None:
    """Raises Unsupported if the program is not installed."""
    if shutil.which("swtpm") is None:
        raise Unsupported("tpm=1 needs swtpm, which is not installed", hint="Install it: apt-get install swtpm")


def open_tpm(directory: Path, state: Path, uid: int | None) -> int:
    """Start the TPM of the domain in ``directory``; returns the other end of its control channel.

    Raises EngineError with its words.
    """
    check_tpm()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    file = os.open(state, os.O_RDWR | os.O_CLOEXEC)
    try:
        if uid is not None:
            os.fchown(file, uid, uid)
        words = [
            *("swtpm", "socket", "--tpm2", "--terminate", "--daemon"),
            # The folders above may be closed to its user.
            *("--tpmstate", f"backend-uri=file:///proc/self/fd/{file}"),
            *("--ctrl", f"type=unixio,clientfd={theirs.fileno()}"),
            # Also what tells this process from all others.
            *("--pid", f"file={marker(directory)}"),
        ]
        if said := start_daemon([*as_user(uid), *words], pass_fds=[file, theirs.fileno()]):
            raise EngineError(f"swtpm can't make a TPM: {said}")
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(file)
    return ours.detach()
