"""Which of the host's PCI devices have been taken from their drivers for domains, kept in xend's database.

Written before it is done, with the driver that gets it back. A starting xend takes them again, after the host's restart
too, unless the host has come to need one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from pyxen import device_api
from pyxen.config.model import PciDevice
from pyxen.engine.contract import DomainSpec
from pyxen.engine.passthrough import binding, pci, vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.errors import Conflict, NotFound, PyxenError, Unsupported
from pyxen.xend.finishing import to_the_end
from pyxen.xend.store import Store

_KEY = "assignable-pci"


class HostPci:
    """Takes devices and gives them back, one at a time."""

    def __init__(self, store: Store, tree: HostTree | None = None) -> None:
        self.tree = tree or HostTree()
        self._store = store
        self._drivers: dict[str, str | None] = {}
        """The old driver of each that was taken."""
        self._lock = asyncio.Lock()

    async def load(self) -> list[str]:
        """Take again what an earlier xend had taken; returns what stands against it, where something does."""
        text = await self._store.meta(_KEY)
        self._drivers = msgspec.json.decode(text, type=dict[str, str | None]) if text else {}
        problems = []
        for address in self._drivers:
            try:
                await asyncio.to_thread(binding.take, self.tree, address)
            except PyxenError as error:
                problems.append(error.message)
        return problems

    def list(self, running: Iterable[DomainSpec]) -> device_api.HostPciDevices:
        """All PCI devices of the host. Blocking."""
        owners = {each.address: spec.config.name for spec in running for each in spec.config.pci}
        problem, hint = "", ""
        try:
            pci.check_iommu(self.tree)
        except Unsupported as error:
            problem, hint = error.message, error.hint or ""
        listed = [self._shown(found, owners.get(found.address)) for found in pci.devices(self.tree)]
        return device_api.HostPciDevices(listed, problem, hint)

    async def take(self, address: str) -> None:
        """Make a device assignable: nothing if it is. Raises PyxenError with what stands against it."""
        async with self._lock:
            found = await asyncio.to_thread(binding.check_takeable, self.tree, address)
            if found.assignable:
                return
            before = dict(self._drivers)
            await self._keep({**before, address: found.driver})
            try:
                await to_the_end(asyncio.to_thread(binding.take, self.tree, address))
            except PyxenError:
                await self._keep(before)
                raise

    async def seize(self, devices: Iterable[PciDevice]) -> None:
        """Make those assignable that are to be seized."""
        for each in devices:
            if each.seize:
                await self.take(each.address)

    async def give_back(self, address: str, running: Iterable[DomainSpec]) -> None:
        """Let the host have a device again. Raises Conflict if a domain has it."""
        async with self._lock:
            try:
                found = await asyncio.to_thread(pci.device, self.tree, address)
            except NotFound:
                if address not in self._drivers:
                    raise
                await self._forget(address)  # it was taken out of the host
                return
            owners = (spec.config.name for spec in running for each in spec.config.pci if each.address == address)
            if (owner := next(owners, None)) is not None:
                raise Conflict(
                    f"{address} ({found.label}) is in use by domain '{owner}'",
                    hint=f"First: xm pci-detach {owner} {address}",
                )
            if not found.assignable and address not in self._drivers:
                raise Conflict(f"{address} ({found.label}) is the host's: its driver is {found.driver or 'none'}")
            if found.assignable:
                await asyncio.to_thread(vfio.check_unused, self.tree, found)
            driver = self._drivers.get(address)
            await to_the_end(asyncio.to_thread(binding.give_back, self.tree, address, driver))
            await self._forget(address)

    def _shown(self, found: pci.HostPciDevice, owner: str | None) -> device_api.HostPciDevice:
        problem = ""
        if not found.assignable:
            try:
                binding.check_takeable(self.tree, found.address)
            except PyxenError as error:
                problem = error.message
        return device_api.HostPciDevice(
            found.address,
            f"{found.vendor:04x}",
            f"{found.device:04x}",
            found.kind,
            found.vendor_name,
            found.device_name,
            found.driver,
            found.group,
            found.assignable,
            owner,
            problem,
        )

    async def _forget(self, address: str) -> None:
        await self._keep({each: old for each, old in self._drivers.items() if each != address})

    async def _keep(self, drivers: dict[str, str | None]) -> None:
        await self._store.set_meta(_KEY, msgspec.json.encode(drivers).decode())
        self._drivers = drivers
