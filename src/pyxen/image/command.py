"""Run the tools that builds need: quietly, with their last words in the error, and never left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pyxen.errors import PyxenError, ResourceExhausted, Unavailable, Unsupported

PACKAGES: Final = {
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "unshare": "util-linux",
}
"""Which Debian package has which tool."""

_GRACE_S: Final = 10


def need(tool: str) -> str:
    """The path of a tool. Raises Unsupported, with the package that has it, where it is not installed."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(tool, path=search)
    if found is None:
        raise Unsupported(f"'{tool}' is not installed", hint=f"Install it: apt-get install {PACKAGES.get(tool, tool)}")
    return found


def run(
    arguments: Sequence[str | Path], *, what: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a tool to its end and give what it printed. ``what`` completes the sentence "cannot …" of the error.

    If this process is told to stop meanwhile, so is the tool.
    """
    command = [need(str(arguments[0])), *map(str, arguments[1:])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        text=True,
        errors="replace",
    )
    try:
        output, complaint = process.communicate()
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        raise failure(what, Path(command[0]).name, process.returncode, complaint or output)
    return output


def failure(what: str, tool: str, status: int, output: str) -> PyxenError:
    """The error for a tool that has failed, with the most telling of the lines it printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return ResourceExhausted(f"cannot {what}: no space is left on the disk", hint="Make room, then run this again.")
    telling = [line for line in lines if line.startswith(("E:", "error", "Error", f"{tool}:"))] or lines[-1:]
    return Unavailable(
        f"cannot {what}: {tool} ended with status {status}{': ' if telling else ''}{'; '.join(telling[:3])}"
    )


def _end(process: subprocess.Popen[str]) -> None:
    """Stop a tool; it gets time to undo what it has mounted."""
    process.terminate()
    try:
        process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
