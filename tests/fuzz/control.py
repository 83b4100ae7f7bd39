"""Lines on control.sock: orders with arguments of all kinds, and what is no order at all."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec

from pyxen.config.model import DomainConfig
from pyxen.hypervisor.control import Later, _answer
from pyxen.hypervisor.devices import Devices
from pyxen.hypervisor.hotplug import Hotplug
from pyxen.hypervisor.orders import Orders
from pyxen.hypervisor.process import DomainProcess
from pyxen.hypervisor.spec import DomainSpec
from pyxen.hypervisor.toolstack import Toolstack
from pyxen.xenstore.local import Local
from pyxen.xenstore.store import Store
from tests.unit.hypervisor.hypercalls.scripted import ScriptedGuest

_KEYS = ("count", "mib", "reason", "device", "disk", "vif", "number", "size", "force")
_WORDS = (
    *_KEYS,
    "xvdb",
    "nic0",
    "raw",
    "target",
    "vdev",
    "x",
    "",
    "self",
    "domain",
    "poweroff",
    "\u00e9",
    "\U0001f600",
)


class HostileCaller:
    """Gives orders to a domain whose machine does nothing. See harness.Target."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outcomes: Counter[str] = Counter()
        process = object.__new__(DomainProcess)
        uuid = "00000000-0000-0000-0000-000000000001"
        spec = DomainSpec(domid=7, uuid=uuid, config=DomainConfig(name="fuzzed", memory=64, vcpus=2), kernel="/k")
        process.spec = spec
        process.stop_reason = None
        process._paused = process._suspended = process._suspending = False
        process.domain = ScriptedGuest().domain
        process.local = Local(Store())
        process.toolstack = Toolstack(process.local, spec, store_port=1, console_port=2)
        for name in ("machine", "loop", "_events", "_tracing"):
            nothing: Any = _Nothing()
            setattr(process, name, nothing)
        process._orders = Orders(spec, process.domain, process.machine, process.toolstack, process, nothing)
        process._devices = Devices(process.local, process.domain, lambda callback: None, lambda device: None)
        process._agent = None
        process._hotplug = Hotplug(process._devices, process._refuse_change)
        self._commands = process._commands()

    def step(self) -> int:
        line = self._line()
        answer, result = _answer(self._commands, line, [])
        assert not isinstance(result, Later), "what takes long wants a descriptor"
        said = msgspec.json.encode(answer)
        assert b"\n" not in said
        assert ("return" in answer) != ("error" in answer)
        self.outcomes["obeyed" if "return" in answer else "refused"] += 1
        return 1

    def check(self) -> None: ...

    def close(self) -> None: ...

    def _value(self, depth: int = 0) -> object:
        rng = self.rng
        kind = rng.randrange(12)
        if kind < 3:
            return rng.choice((0, 1, 2, 3, -1, 63, 64, 65, 1 << 31, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**40))
        if kind == 3:
            return rng.choice((0.5, 1.0, 1e308, -0.0, 2.5))
        if kind < 7:
            return rng.choice(_WORDS) * rng.choice((1, 1, 1, 1000))
        if kind == 7:
            return rng.choice((None, True, False))
        if depth > 3:
            return []
        if kind < 10:
            return [self._value(depth + 1) for _ in range(rng.randrange(3))]
        return {rng.choice(_WORDS): self._value(depth + 1) for _ in range(rng.randrange(3))}

    def _line(self) -> bytes:
        rng = self.rng
        message: dict[str, object] = {}
        if rng.randrange(20):
            message["execute"] = rng.choice(list(self._commands)) if rng.randrange(8) else self._value()
        if rng.randrange(3):
            message["arguments"] = {
                rng.choice((*_KEYS, rng.choice(_WORDS))): self._value() for _ in range(rng.randrange(1, 3))
            }
        elif rng.randrange(10) == 0:
            message["arguments"] = self._value()
        if rng.randrange(3) == 0:
            message["id"] = self._value()
        line = bytearray(json.dumps(message, ensure_ascii=bool(rng.randrange(2))).encode())
        kind = rng.randrange(20)
        if kind == 0:
            line = bytearray(rng.randbytes(rng.randrange(60)))
        elif kind < 4 and line:
            line[rng.randrange(len(line))] = rng.getrandbits(8)
        elif kind == 4:
            line = bytearray(b"[" * 100_000 if rng.randrange(8) == 0 else b'{"id":' * 3000)
        elif kind == 5:
            del line[rng.randrange(len(line) + 1) :]
        return bytes(line.replace(b"\n", b" "))


class _Nothing(SimpleNamespace):
    """Does whatever it is told."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
