"""Opens a disk's image: raw ones here, qcow2 ones through a server that ends with its only client."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pyxen.backend.disk import Disk, RawDisk
from pyxen.backend.nbd import NbdDisk
from pyxen.errors import EngineError, NotFound, Unsupported

_START_S = 30.0


def open_image(path: Path, kind: str, directory: Path, name: str, *, read_only: bool) -> Disk:
    """The disk in ``path``, of ``kind`` raw or qcow2. ``directory/name.nbd`` is the server's socket, for a moment.

    Raises NotFound, Unavailable, Unsupported, EngineError.
    """
    if kind == "raw":
        return RawDisk(path, read_only=read_only)
    if kind != "qcow2":
        raise Unsupported(f"the disk {path} is of the format {kind}, which the Xen engine can't read")
    if not path.exists():
        raise NotFound(f"there is no disk {path}")
    socket = directory / f"{name}.nbd"
    _serve(path, socket, read_only=read_only)
    try:
        return NbdDisk(socket)
    finally:
        socket.unlink(missing_ok=True)


def _serve(path: Path, socket: Path, *, read_only: bool) -> None:
    """Start qemu-nbd; it listens when this returns, and ends when its first client, which is us, is gone."""
    program = shutil.which("qemu-nbd")
    if program is None:
        raise Unsupported("qcow2 disks need qemu-nbd, which is missing", hint="Try: apt-get install qemu-utils")
    options = ["--read-only"] if read_only else ["--discard=unmap"]
    command = [program, "--fork", "--format=qcow2", f"--socket={socket}", *options, "--", str(path)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_START_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"qemu-nbd did not open the disk {path} within {_START_S:.0f} s") from error
    if done.returncode != 0:
        raise EngineError(f"qemu-nbd can't open the disk {path}: {done.stderr.strip().rpartition(': ')[2]}")
