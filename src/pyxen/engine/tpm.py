"""A domain's TPM 2.0: swtpm, a process beside the monitor, as the same user. It ends when the monitor does."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from pyxen.engine.helpers import start_helper
from pyxen.engine.process import last_words, marker
from pyxen.engine.user import as_user
from pyxen.errors import EngineError, Unsupported

_LOG = "tpm.log"
_ANSWER_S = 10.0
_GET_CAPABILITY = (1).to_bytes(4, "big")  # swtpm_ioctls(3)
_IN_THE_BACKGROUND = ("sh", "-c", '"$@" </dev/null >/dev/null 2>>/proc/self/fd/"$0" &')


def check_tpm() -> None:
    """Raises Unsupported if the program is not installed."""
    if shutil.which("swtpm") is None:
        raise Unsupported("tpm=1 needs swtpm, which is not installed", hint="Install it: apt-get install swtpm")


def open_tpm(directory: Path, state: Path, uid: int | None) -> int:
    """Start the TPM of the domain in ``directory``; returns the other end of its control channel, where it answers.

    ``state`` is the file that it keeps its state in, empty at first. Raises EngineError with its words.
    """
    check_tpm()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        file = os.open(state, os.O_RDWR | os.O_CLOEXEC)
        log = os.open(directory / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if uid is not None:
                os.fchown(file, uid, uid)
            words = [*as_user(uid), *_swtpm(directory, file, theirs.fileno(), log)]
            said = start_helper(
                [*_IN_THE_BACKGROUND, str(log), *words], directory, pass_fds=[file, theirs.fileno(), log]
            )
        finally:
            theirs.close()
            os.close(file)
            os.close(log)
        if not said and _answers(ours):
            return ours.detach()
        raise EngineError(f"swtpm can't make a TPM: {said or last_words(directory / _LOG) or 'it does not say why'}")
    except BaseException:
        ours.close()
        raise


def _swtpm(directory: Path, state: int, control: int, log: int) -> list[str]:
    return [
        *("swtpm", "socket", "--tpm2", "--terminate"),
        # The folders above may be closed to its user.
        *("--tpmstate", f"backend-uri=file:///proc/self/fd/{state}"),
        *("--ctrl", f"type=unixio,clientfd={control}"),
        # What tells this process from all others, in an option that the next one overrules.
        *("--log", f"file={marker(directory)}", "--log", f"fd={log}"),
    ]


def _answers(control: socket.socket) -> bool:
    control.settimeout(_ANSWER_S)
    try:
        control.sendall(_GET_CAPABILITY)
        return len(control.recv(8)) == 8
    except OSError:
        return False
    finally:
        control.settimeout(None)
