"""Start a QEMU: open what it needs, give it its user, and let go of it. Blocking; the engine calls it in a thread.

QEMU's console and events monitor are pairs of files, NAME.in and NAME.out, where NAME.out is a link to what the
contract calls console.log and events. QEMU opens the FIFOs for writing as well as for reading, so it never sees the end
of either, and xend may come and go.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec

from pyxen.api import AgentKind
from pyxen.config.model import DomainConfig, DomainType, Firmware
from pyxen.engine import cgroup
from pyxen.engine.contract import DomainSpec, StartedInfo
from pyxen.engine.descriptors import Descriptors
from pyxen.engine.domain import save_info, write_pid
from pyxen.engine.events import READY_ID
from pyxen.engine.layers import open_drives
from pyxen.engine.passthrough import vfio
from pyxen.engine.passthrough.tree import HostTree
from pyxen.engine.probe import DEVICE
from pyxen.engine.process import spawn
from pyxen.engine.qemu import qmp
from pyxen.engine.qemu.argv import EVENTS_INPUT, QBOOT, Facts, balloons, build
from pyxen.engine.qemu.networks import open_networks
from pyxen.engine.qemu.passthrough import open_usb
from pyxen.engine.qemu.vnc import choose_display
from pyxen.engine.shares import open_share
from pyxen.engine.sockets import AGENTS, GDB, listen
from pyxen.engine.template import Template
from pyxen.engine.tpm import open_tpm
from pyxen.engine.user import as_user
from pyxen.errors import EngineError, Unsupported

_OVMF_CODE = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/OVMF/OVMF_CODE.fd")
_OVMF_SECURE_CODE = ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd")
_ENV = "/usr/bin/env"
_OWNED = ("console.log", "console.in", "events", EVENTS_INPUT, "stderr")


def find_binary() -> str:
    """QEMU's absolute path. Raises Unsupported if it isn't installed."""
    if (found := shutil.which("qemu-system-x86_64")) is None:
        raise Unsupported("QEMU is not installed", hint="Install it: apt-get install qemu-system-x86")
    return found


def find_firmware(config: DomainConfig) -> str | None:
    """The UEFI code that ``config`` needs, if any. Raises Unsupported when a firmware is missing."""
    if config.type is DomainType.PVH:
        if not Path(QBOOT).exists():
            raise Unsupported(f"{QBOOT} is missing", hint="Install it: apt-get install qemu-system-data")
        return None
    if config.firmware is not Firmware.UEFI:
        return None
    known = _OVMF_SECURE_CODE if config.secure_boot else _OVMF_CODE
    found = next((path for path in known if Path(path).exists()), None)
    if found is None:
        what = "the UEFI firmware with secure boot" if config.secure_boot else "the UEFI firmware"
        raise Unsupported(f"{what} is not installed", hint="Install it: apt-get install ovmf")
    return found


def launch(
    spec: DomainSpec,
    directory: Path,
    *,
    accelerator: str,
    paused: bool,
    incoming: bool = False,
    template: Template | None = None,
    tree: HostTree,
) -> tuple[int, StartedInfo]:
    """Start QEMU for ``spec``; returns its process id at once. Raises PyxenError; then there is no process.

    ``incoming``: it waits for a guest's state, and is told of that later (so it is ``paused``, too). The guest's memory
    is that of ``template`` if there is one: to be filled, or with changes of its own where it is full; then the rest of
    the state is there as well, and it goes on by itself.
    """
    info = StartedInfo(accelerator=accelerator)
    try:
        with Descriptors() as descriptors:
            facts = _gather(spec, directory, accelerator, descriptors, info, incoming=incoming, tree=tree)
            commands = _first_commands(spec.config, incoming=incoming)
            if template is not None:
                # Opened anew by QEMU; all may open a memfd whose descriptor they have.
                path = f"/proc/self/fd/{descriptors.take(template.memory())}"
                facts = replace(facts, memory=path, memory_shared=not template.full)
                if template.full:
                    commands += _loading(descriptors.take(template.devices()))
            if not paused:
                commands.append({"execute": "cont", "id": "cont"})
            descriptors.take(_give_commands(directory, commands))
            arguments = build(spec, facts)
            (directory / "stderr").touch(mode=0o600)
            if spec.uid is not None:
                _give(directory, spec.uid)
            pid = spawn(
                [
                    _ENV,
                    "-C",
                    str(directory),
                    *vfio.lock_words(spec),
                    *as_user(spec.uid, _groups(accelerator)),
                    *arguments,
                    *descriptors.arguments,
                ],
                stderr=directory / "stderr",
                pass_fds=descriptors.fds,
                nodes=spec.nodes,
                small_pages=template is not None and template.full,
            )
        write_pid(directory, pid)
        if (group := cgroup.enter(spec.uuid, pid)) is not None:
            info.jail = cgroup.limit(group, _limits(spec.config, accelerator))
        save_info(directory, info)
    except OSError as error:
        raise EngineError(f"cannot start QEMU for '{spec.config.name}': {error}") from error
    return pid, info


def _limits(config: DomainConfig, accelerator: str) -> cgroup.Limits:
    """TCG keeps up to 1 GiB of translated code; QEMU's pool for disk requests has up to 64 threads for each disk."""
    memory = max(config.memory, config.maxmem or 0)
    vcpus = max(config.vcpus, config.maxvcpus or 0)
    own = 512 + (1024 if accelerator == "tcg" else 0)
    return cgroup.Limits(memory + memory // 64 + own, vcpus + 128 + 64 * len(config.disk))


def _gather(
    spec: DomainSpec,
    directory: Path,
    accelerator: str,
    descriptors: Descriptors,
    info: StartedInfo,
    *,
    incoming: bool,
    tree: HostTree,
) -> Facts:
    """Open and make everything that QEMU will be told of."""
    config = spec.config
    vfio.open_to(tree, config.pci, spec.uid)
    code = find_firmware(config)
    (directory / "console.out").symlink_to("console.log")
    (directory / "events.out").symlink_to("events")
    if config.type is DomainType.HVM and config.vnc:
        info.vnc = choose_display(config.vnclisten, config.vncdisplay)
    if config.gdb:
        info.gdb = str(directory / GDB)
    return Facts(
        binary=find_binary(),
        directory=directory,
        accelerator=accelerator,
        host_cpus=len(os.sched_getaffinity(0)),
        control_fd=descriptors.take(listen(directory, qmp.SOCKET)),
        agent_fd=descriptors.take(listen(directory, AGENTS[AgentKind.PYXEN])),
        qga_fd=descriptors.take(listen(directory, AGENTS[AgentKind.QEMU])),
        tpm_fd=descriptors.take(open_tpm(directory, Path(spec.tpm), spec.uid)) if spec.tpm else None,
        gdb_fd=descriptors.take(listen(directory, GDB)) if config.gdb else None,
        shares=[f"/proc/self/fd/{descriptors.take(open_share(share, spec.uid))}" for share in config.p9],
        # A guest that goes on has its kernel in memory, and a reset ends this process.
        kernel=None if incoming else openable(spec.kernel, spec.uid, directory / "kernel", descriptors),
        ramdisk=None if incoming else openable(spec.ramdisk, spec.uid, directory / "ramdisk", descriptors),
        drives=open_drives(config.disk, descriptors),
        usb=open_usb(config, descriptors, tree),
        netdevs=open_networks(spec, descriptors, info),
        firmware_code=descriptors.open(code, writable=False) if code else None,
        firmware_variables=descriptors.open(spec.nvram, writable=True) if code and spec.nvram else None,
        vnc=info.vnc,
        incoming=incoming,
    )


def _first_commands(config: DomainConfig, *, incoming: bool) -> list[dict[str, object]]:
    commands: list[dict[str, object]] = [{"execute": "qmp_capabilities", "id": READY_ID}]
    if balloons(config) and not incoming:
        commands.append({"execute": "balloon", "arguments": {"value": config.memory << 20}, "id": "balloon"})
    return commands


def _loading(devices: int) -> list[dict[str, object]]:
    """What has QEMU take in a template's devices, from this descriptor.

    Told with the first commands, since each question and answer later would take longer than that itself.
    """
    wanted = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
    return [
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": wanted}, "id": "capabilities"},
        {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{devices}"}, "id": "incoming"},
    ]


def _give_commands(directory: Path, commands: list[dict[str, object]]) -> int:
    """Put into the events monitor's FIFO what it is told before anything else.

    Returns a descriptor that must be open until QEMU has opened the FIFO: what is in it goes with its last opener.
    """
    fifo = directory / EVENTS_INPUT
    os.mkfifo(fifo, 0o600)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(fd, b"".join(map(msgspec.json.encode, commands)))
    return fd


def _give(directory: Path, uid: int) -> None:
    """Let the domain's user, and no other but root, into its folder."""
    for name in _OWNED:
        os.chown(directory / name, uid, uid)
    os.chown(directory, uid, uid)
    directory.chmod(0o700)


def _groups(accelerator: str) -> list[int]:
    """The groups that QEMU is a member of: with KVM, that whose members may use it."""
    group = kvm_group() if accelerator == "kvm" else None
    return [group] if group else []


def kvm_group(device: Path = DEVICE) -> int | None:
    """The group whose members may use KVM; 0: everyone may; None: only its owner may."""
    found = device.stat()
    if found.st_mode & 0o006 == 0o006:
        return 0
    return found.st_gid or None if found.st_mode & 0o060 == 0o060 else None


def openable(path: str | None, uid: int | None, copy: Path, descriptors: Descriptors) -> str | None:
    """``path`` under a name by which QEMU's user can open it; QEMU takes no descriptors for these.

    Folders above a file may be closed though the file is open to all; of a file that is closed itself a copy is made.
    """
    if path is None or uid is None:
        return path
    if Path(path).stat().st_mode & 0o004:
        return f"/proc/self/fd/{descriptors.take(os.open(path, os.O_RDONLY | os.O_CLOEXEC))}"
    shutil.copyfile(path, copy)
    copy.chmod(0o400)
    os.chown(copy, uid, uid)
    return copy.name
