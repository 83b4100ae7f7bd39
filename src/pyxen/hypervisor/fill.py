"""Fill a template: ``python -m pyxen.hypervisor.fill DIRECTORY/monitor --state FD --memory FD --devices FD``.

A state is read from the first descriptor; its RAM goes into the second, a file of just its size, piece after piece as
layout.ram has them; all else goes as a state of its own into the third. In a jail, as nobody knows who has written it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
from pathlib import Path

from pyxen.errors import PyxenError
from pyxen.hypervisor.builder import layout
from pyxen.hypervisor.jail import Jail, mode
from pyxen.hypervisor.memory import GuestMemory
from pyxen.hypervisor.state import ram
from pyxen.hypervisor.state.sections import DONE, PAGES, Reader, Writer
from pyxen.hypervisor.state.stop import Stop


def pieces(size: int) -> list[tuple[int, int, int]]:
    """The (address, length, offset in the file) of the pieces that ``size`` bytes of RAM come in."""
    offset, found = 0, []
    for address, length in layout.ram(size):
        found.append((address, length, offset))
        offset += length
    return found


def fill(state: int, memory: GuestMemory, devices: int) -> None:
    """Take a state apart. Raises InvalidRequest and OSError."""
    stop = Stop()
    reader, writer = Reader(state), Writer(devices, stop)
    while (kind := reader.section()) != DONE:
        if kind == PAGES:
            address = ram.take_address(reader)
            if any(region.start <= address < region.end for region in memory.regions):
                ram.take_pages(reader, address, memory)
            else:
                ram.put(writer, address, reader.contents())
        else:
            writer.section(kind, reader.contents())
    writer.done()
    stop.close()


def main(argv: list[str]) -> None:
    """The process. Raises PyxenError and OSError."""
    parser = argparse.ArgumentParser(prog="python -m pyxen.hypervisor.fill", description="Fill a template.")
    parser.add_argument("monitor", type=Path)
    for name in ("state", "memory", "devices"):
        parser.add_argument(f"--{name}", type=int, required=True, metavar="FD")
    parser.add_argument("--uid", type=int)
    options = parser.parse_args(argv)
    os.umask(0o077)
    jail = Jail(mode(), keep=[options.state, options.memory, options.devices])
    size = os.fstat(options.memory).st_size
    view = memoryview(mmap.mmap(options.memory, size))
    memory = GuestMemory((address, view[offset : offset + length]) for address, length, offset in pieces(size))
    jail.enter(options.monitor.parent, uid=options.uid, vcpus=0)
    fill(options.state, memory, options.devices)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (PyxenError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(1)
