"""Kernels that are none: headers, notes, sizes and packed payloads with bytes and numbers changed."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path

from pyxen.errors import PyxenError
from pyxen.hypervisor.builder import build
from pyxen.image import kernel
from tests.unit.hypervisor.builder.elves import jumping_pair, linux_like
from tests.unit.image import kernels

_EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, 0xC0000000, 0xFC000000)
_MEMORY = 64 << 20


class HostileKernel:
    """Unpacks and builds what may have been a kernel once. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        elf32, elf64 = kernels.vmlinux(bits=32), kernels.vmlinux()
        linux = linux_like(jumping_pair().ljust(0x600, b"\xc3"))
        packed = [kernels.bzimage(kernels.payload(form, elf64)) for form in kernels.PACKERS]
        self._sound = [elf32, elf64, linux, linux, *packed]
        self._folder = tempfile.TemporaryDirectory(prefix="pyxen-fuzz-")
        self._file = Path(self._folder.name) / "kernel"
        self._memory = build.allocate(_MEMORY)

    def step(self) -> int:
        data = self._mutated()
        try:
            found = kernel.inspect(data, self._file)
            self.outcomes["inspected"] += 1
            unpacked = bytes(found.data)
        except PyxenError:
            self.outcomes["refused"] += 1
            unpacked = data
        if unpacked[:4] == b"\x7fELF":
            self._file.write_bytes(unpacked)
            try:
                build.build(self._memory, self._file, None, "console=hvc0", 2)
                self.outcomes["built"] += 1
            except PyxenError:
                self.outcomes["not built"] += 1
        return 1

    def check(self) -> None: ...

    def close(self) -> None:
        self._folder.cleanup()

    def _mutated(self) -> bytes:
        rng = self.rng
        data = bytearray(rng.choice(self._sound))
        for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
            # The first bytes are what everything else follows from.
            at = rng.randrange(min(len(data), rng.choice((64, 256, 0x270, 0x2000, len(data)))))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.getrandbits(8)
            else:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = (rng.choice(_EDGES) & (1 << 8 * width) - 1).to_bytes(width, "little")
        if rng.randrange(20) == 0:
            del data[rng.randrange(len(data)) :]
        return bytes(data)
