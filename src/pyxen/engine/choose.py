"""Which engine runs a domain: what its description asks for, and what this machine can do."""

from __future__ import annotations

from collections.abc import Sequence

from pyxen.config.model import Accelerator, DomainConfig, DomainType, EngineChoice
from pyxen.engine.contract import Engine
from pyxen.errors import Unsupported

_PREFERENCE = {DomainType.PVH: ("xen", "qemu"), DomainType.HVM: ("qemu",)}


def choose(config: DomainConfig, engines: Sequence[Engine]) -> Engine:
    """The engine for ``config``; raises Unsupported, with every engine's reason, if none will do."""
    forced = config.engine is not EngineChoice.AUTO
    wanted = (config.engine.value,) if forced else _preference(config)
    reasons: list[str] = []
    for name in wanted:
        engine = next((each for each in engines if each.name == name), None)
        if engine is None:
            if forced:
                reasons.append(f"this xend has no engine '{name}'")
            continue
        info = engine.info()
        if info.available:
            return engine
        reasons.append(f"{name}: {info.reason}")
    raise Unsupported(
        f"cannot run '{config.name}' ({config.type.value}) here: {'; '.join(reasons) or 'no engine'}",
        hint="Leave engine=auto to take what there is." if forced else None,
    )


def _preference(config: DomainConfig) -> tuple[str, ...]:
    # The Xen engine has no accelerator to choose, no 9pfs and no stub for gdb.
    return ("qemu",) if config.accel is Accelerator.TCG or config.p9 or config.gdb else _PREFERENCE[config.type]
