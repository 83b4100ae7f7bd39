"""The QEMU engine: PVH and HVM domains, on KVM where it works and on TCG everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pyxen.api import EngineInfo
from pyxen.config.model import Accelerator, DomainConfig, DomainType
from pyxen.engine.contract import DomainSpec, RunningDomain, StartedInfo
from pyxen.engine.domain import reap
from pyxen.engine.hugepages import check_hugepages
from pyxen.engine.inotify import Inotify
from pyxen.engine.passthrough.tree import HostTree
from pyxen.engine.probe import DEVICE, Verdict, kvm_verdict
from pyxen.engine.process import kill_all
from pyxen.engine.qemu import copying
from pyxen.engine.qemu.disks import check_disks
from pyxen.engine.qemu.domain import QemuDomain
from pyxen.engine.qemu.launch import find_binary, find_firmware, kvm_group, launch
from pyxen.engine.qemu.networks import check_networks
from pyxen.engine.qemu.slots import laid_out
from pyxen.engine.qemu.words import translate
from pyxen.engine.template import FOLDER, Template, make_folder
from pyxen.engine.tpm import check_tpm
from pyxen.errors import ConfigError, EngineError, Unsupported

_READY_S = 60.0
_MOST_VCPUS = 255


@functools.cache
def _version(binary: str) -> str:
    """``7.2.22``, as the program says; empty if it doesn't."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = done.stdout.split()
    return words[3] if len(words) > 3 else ""


class QemuEngine:
    """Starts and adopts QEMU processes. ``state`` is where the KVM probe keeps its verdict."""

    name = "qemu"

    def __init__(self, state: Path, inotify: Inotify | None = None, tree: HostTree | None = None) -> None:
        self._state = state
        self._inotify = inotify
        self._tree = tree or HostTree()

    def info(self) -> EngineInfo:
        try:
            binary = find_binary()
        except Unsupported as error:
            reason = f"{error.message}. {error.hint}" if error.hint else error.message
            return EngineInfo(name=self.name, available=False, reason=reason)
        verdict = self.verdict()
        reason = "with KVM" if verdict.usable else f"with TCG, since KVM can't be used: {verdict.reason}"
        return EngineInfo(name=self.name, available=True, reason=reason, version=_version(binary))

    def verdict(self) -> Verdict:
        """Can this machine's KVM run a 64-bit guest? Probed once a boot."""
        return kvm_verdict(self._state)

    def accelerator(self, config: DomainConfig) -> str:
        """``kvm`` or ``tcg``. Raises Unsupported if KVM is asked for and can't be used."""
        if config.accel is Accelerator.TCG:
            return "tcg"
        verdict = self.verdict()
        if config.accel is Accelerator.KVM and not verdict.usable:
            raise Unsupported(
                f"'{config.name}' wants accel=kvm, but KVM can't be used: {verdict.reason}",
                hint=verdict.hint or "Leave it out, or say accel=tcg: that works everywhere, but slower.",
            )
        return "kvm" if verdict.usable else "tcg"

    def _accelerator_for(self, spec: DomainSpec) -> str:
        """The same, for the user that QEMU will run as: KVM may be closed to it though it is open to xend."""
        accelerator = self.accelerator(spec.config)
        if accelerator == "tcg" or spec.uid is None or kvm_group() is not None:
            return accelerator
        if spec.config.accel is Accelerator.KVM:
            raise Unsupported(
                f"'{spec.config.name}' wants accel=kvm, but {DEVICE} is open to its owner only",
                hint=f"Open it to a group: chgrp kvm {DEVICE} && chmod g+rw {DEVICE}",
            )
        return "tcg"

    def check(self, config: DomainConfig) -> list[str]:
        find_binary()
        find_firmware(config)
        self.accelerator(config)
        if config.type is DomainType.PVH and config.kernel is None and config.image is None:
            raise ConfigError("a pvh domain needs a kernel", key="kernel", hint="Say kernel=… or image=…, or type=hvm.")
        if max(config.vcpus, config.maxvcpus or 0) > _MOST_VCPUS:
            raise Unsupported(f"QEMU runs at most {_MOST_VCPUS} VCPUs, '{config.name}' asks for more")
        check_hugepages(config)
        if config.tpm and config.type is DomainType.HVM:
            check_tpm()
        warnings = [*check_disks(config), *check_networks(config)]
        if config.viridian and config.type is DomainType.HVM and self.accelerator(config) == "tcg":
            warnings.append("viridian has no effect without KVM: TCG shows its guests no hypervisor")
        return warnings

    def lay_out(self, spec: DomainSpec) -> DomainSpec:
        return laid_out(spec)

    async def start(
        self,
        spec: DomainSpec,
        directory: Path,
        *,
        paused: bool,
        state: int | None = None,
        late_disks: bool = False,
        template: Template | None = None,
        empty_disks: Sequence[str] = (),
    ) -> RunningDomain:
        incoming = state is not None or template is not None
        stopped = paused or (incoming and template is None)
        if template is not None and not template.full:
            assert state is not None
            await self._fill(template, spec, directory, state)
        pid, info = await self._launch(
            spec, directory, paused=stopped, incoming=incoming, template=template, undo=self.reap
        )
        domain = QemuDomain(spec, directory, pid, self._watcher(), info)
        try:
            await domain.settle(_READY_S, paused=stopped, loading=template is not None)
            if template is None and state is not None:
                if empty_disks:
                    await copying.serve(directory, empty_disks)
                await domain.load_state(state, paused=paused, late_disks=late_disks)
                if empty_disks:
                    await copying.stop_serving(directory)
            await domain.limit_disks()
        except EngineError as error:
            raise translate(spec.config.name, error.message) from error
        return domain

    async def _launch(
        self,
        spec: DomainSpec,
        folder: Path,
        *,
        paused: bool,
        incoming: bool,
        template: Template | None,
        undo: Callable[[Path], None],
    ) -> tuple[int, StartedInfo]:
        """Start a QEMU in ``folder``. Cancelled, it lets ``undo`` end there what has been started."""
        accelerator = await asyncio.to_thread(self._accelerator_for, spec)
        launching = asyncio.ensure_future(
            asyncio.to_thread(
                launch,
                spec,
                folder,
                accelerator=accelerator,
                paused=paused,
                incoming=incoming,
                template=template,
                tree=self._tree,
            )
        )
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            # The thread can't be called back: let it finish first.
            await asyncio.wait([launching])
            await asyncio.to_thread(undo, folder)
            raise

    async def _fill(self, template: Template, spec: DomainSpec, directory: Path, state: int) -> None:
        """Have a QEMU with the same machine, whose memory is the template's, read the state and write the devices'."""
        folder = await asyncio.to_thread(make_folder, directory)
        pid, info = await self._launch(spec, folder, paused=True, incoming=True, template=template, undo=kill_all)
        domain = QemuDomain(spec, folder, pid, self._watcher(), info)
        try:
            await domain.settle(_READY_S, paused=True)
            await domain.load_state(state, paused=True, late_disks=False)
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, devices := template.devices())
                await domain.save_state(devices, shared=True)
        except EngineError as error:
            raise translate(spec.config.name, error.message) from error
        finally:
            await domain.destroy()
            domain.close()
        await asyncio.to_thread(template.seal)

    async def adopt(self, spec: DomainSpec, directory: Path) -> RunningDomain | None:
        domain = QemuDomain.adopt(spec, directory, self._watcher())
        if domain is not None:
            await domain.learn_vcpus()
            await domain.learn_devices()
        return domain

    def reap(self, directory: Path) -> None:
        kill_all(directory / FOLDER)
        reap(directory)

    def _watcher(self) -> Inotify:
        if self._inotify is None:
            self._inotify = Inotify()
        return self._inotify
