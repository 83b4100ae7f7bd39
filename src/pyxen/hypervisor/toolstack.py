"""What the tool stack writes into xenstore for a domain, as libxl does, and the orders it gives through it."""

from __future__ import annotations

from typing import Final

from pyxen.abi.grant_table import RESERVED_CONSOLE, RESERVED_XENSTORE
from pyxen.hypervisor.spec import DomainSpec
from pyxen.xenstore.local import Local

_KIB_IN_MIB: Final = 1024
_GUEST_WRITES: Final = (
    "control/shutdown",
    "control/sysrq",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-halt",
    "control/feature-suspend",
    "control/platform-feature-multiprocessor-suspend",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
    "device/suspend/event-channel",
)


class Toolstack:
    """Domain 0's side of ``/local/domain/DOMID``. Main loop's thread only."""

    def __init__(self, local: Local, spec: DomainSpec, *, store_port: int, console_port: int) -> None:
        self._local = local
        self._spec = spec
        self._home = f"/local/domain/{spec.domid}"
        config = spec.config
        vm = f"/vm/{spec.uuid}"
        values: dict[str, str | int] = {
            f"{vm}/uuid": spec.uuid,
            f"{self._home}/vm": vm,
            f"{self._home}/domid": spec.domid,
            f"{self._home}/memory/static-max": spec.most_memory * _KIB_IN_MIB,
            f"{self._home}/memory/target": config.memory * _KIB_IN_MIB,
            f"{self._home}/memory/videoram": 0,
            f"{self._home}/store/port": store_port,
            f"{self._home}/store/ring-ref": RESERVED_XENSTORE,
            f"{self._home}/console/port": console_port,
            f"{self._home}/console/ring-ref": RESERVED_CONSOLE,
            f"{self._home}/console/type": "xenconsoled",
            f"{self._home}/console/limit": 1 << 20,
            f"{self._home}/control/platform-feature-xs_reset_watches": 1,
        }
        values |= self._names(config.name) | self._availability(config.vcpus)
        readable, writable = ["n0", f"r{spec.domid}"], [f"n{spec.domid}"]
        owners = dict.fromkeys((vm, self._home, f"{self._home}/device", *values), readable)
        owners |= dict.fromkeys((f"{self._home}/{path}" for path in _GUEST_WRITES), writable)
        local.write_all(values, owners)

    def ask(self, reason: str) -> None:
        """Ask the guest to ``reason``: poweroff, reboot, halt, suspend."""
        self._local.write(f"{self._home}/control/shutdown", reason)

    def withdraw(self, reason: str) -> bool:
        """Ask no longer; False if the guest has taken the order already (it empties the node as it does)."""
        node = f"{self._home}/control/shutdown"
        if self._local.read(node) != reason:
            return False
        self._local.write(node, "")
        return True

    def set_vcpus(self, count: int) -> None:
        """How many VCPUs the guest is to use."""
        self._local.write_all(self._availability(count))

    def rename(self, name: str) -> None:
        """What the domain is called."""
        self._local.write_all(self._names(name))

    def set_memory(self, mib: int) -> None:
        """The size that the guest is to shrink or grow to."""
        self._local.write(f"{self._home}/memory/target", mib * _KIB_IN_MIB)

    def press(self, key: str) -> None:
        """Have the guest's kernel do what it does for this key with SysRq; it empties the node as it does."""
        self._local.write(f"{self._home}/control/sysrq", key)

    def _names(self, name: str) -> dict[str, str | int]:
        return {f"/vm/{self._spec.uuid}/name": name, f"{self._home}/name": name}

    def _availability(self, count: int) -> dict[str, str | int]:
        most = self._spec.most_vcpus
        return {f"{self._home}/cpu/{n}/availability": "online" if n < count else "offline" for n in range(most)}
