"""Disks behind the image server: read and written through NBD, and whole on the host when it has ended."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from pyxen.backend.nbd import NbdDisk
from pyxen.config.model import Disk, DiskAccess, DiskFormat
from pyxen.engine.process import end_all, find
from pyxen.engine.storage import DISKS_SOCKET, open_disk, resize, serve, served
from pyxen.errors import Conflict, EngineError

pytestmark = pytest.mark.anyio


def convert(path: Path, raw: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)


def qcow2(path: Path, *options: str) -> Disk:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True)
    return Disk(vdev=path.stem, target=str(path), format=DiskFormat.QCOW2)


async def test_layers_are_served_by_name_and_whole_after_the_end(tmp_path: Path) -> None:
    base = tmp_path / "base.img"
    base.write_bytes(b"below" * 1000 + bytes((1 << 20) - 5000))
    written = qcow2(tmp_path / "xvda.qcow2", "-b", "base.img", "-F", "raw")
    only_read = Disk(
        vdev="xvdb",
        target=qcow2(tmp_path / "xvdb.qcow2").target,
        format=DiskFormat.QCOW2,
        access=DiskAccess.READ,
    )
    raw = Disk(vdev="xvdc", target=str(base), format=DiskFormat.RAW)
    disks = served([written, only_read, raw, Disk(vdev="xvdd", format=DiskFormat.RAW)])
    assert disks == [written, only_read]
    try:
        await serve(disks, tmp_path, None)
        assert len(find(tmp_path)) == 1
        first, second = (NbdDisk.at(tmp_path / DISKS_SOCKET, disk.vdev) for disk in disks)
        assert (first.size, first.read_only, second.read_only) == (1 << 20, False, True)
        found = bytearray(5)
        first.read_into(0, [memoryview(found)])
        assert found == b"below"
        first.write_from(512, [memoryview(b"above" + bytes(507))])
        first.close()
        second.close()
    finally:
        end_all(tmp_path)
    assert find(tmp_path) == []
    convert(Path(written.target), tmp_path / "x")
    assert (tmp_path / "x").read_bytes()[510:518] == b"be" + b"above" + b"\0"
    assert base.read_bytes()[512:517] != b"above"


async def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.qcow2"
    path.write_bytes(b"QFI\xfb" + bytes(4096))
    try:
        with pytest.raises(EngineError, match=r"can't read the domain's disks: .*qcow2"):
            await serve([Disk(vdev="xvda", target=str(path), format=DiskFormat.QCOW2)], tmp_path, None)
    finally:
        end_all(tmp_path)


async def test_a_disk_grows_while_it_is_read(tmp_path: Path) -> None:
    """Its requests wait for the new connection; none fails."""
    disk = qcow2(tmp_path / "xvda.qcow2")
    reads: list[int] = []
    enough = threading.Event()
    try:
        await serve([disk], tmp_path, None)
        nbd = NbdDisk.at(tmp_path / DISKS_SOCKET, "xvda")

        def read() -> None:
            while not enough.is_set():
                nbd.read_into(0, [memoryview(bytearray(4096))])
                reads.append(nbd.size)

        reader = asyncio.create_task(asyncio.to_thread(read))
        for mib in (2, 3):
            await asyncio.to_thread(nbd.hold)
            assert nbd.held
            await resize(disk, mib << 20, tmp_path)
            count = len(reads)
            await asyncio.to_thread(nbd.go_on, await open_disk(tmp_path))
            while len(reads) == count:  # noqa: ASYNC110 - a thread
                await asyncio.sleep(0.001)
        enough.set()
        await reader
        assert reads[-1] == nbd.size == 3 << 20
        with pytest.raises(Conflict, match="a connection that it uses"):
            nbd.go_on(socket.socket(socket.AF_UNIX))
        await _what_waits_can_be_cancelled(nbd)
        nbd.close()
    finally:
        enough.set()
        end_all(tmp_path)


async def _what_waits_can_be_cancelled(nbd: NbdDisk) -> None:
    nbd.hold()
    waiting = asyncio.create_task(asyncio.to_thread(nbd.flush))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    nbd.cancel(True)
    with pytest.raises(OSError) as caught:
        await waiting
    assert caught.value.errno == errno.ECANCELED
