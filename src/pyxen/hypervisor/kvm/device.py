"""/dev/kvm itself."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pyxen.errors import EngineError, Unsupported
from pyxen.hypervisor.kvm import cpuid, uapi
from pyxen.hypervisor.kvm.ioctl import call
from pyxen.hypervisor.kvm.uapi import Call, Capability
from pyxen.hypervisor.kvm.vm import Vm

_NEEDED = (Capability.SYNC_REGS, Capability.IMMEDIATE_EXIT, Capability.USER_SPACE_MSR)
_MOST_MSRS = 4096


class Kvm:
    """The device, open. Raises Unsupported if it isn't there, EngineError if it is too old."""

    def __init__(self, path: Path = Path("/dev/kvm")) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unsupported(f"{path} can't be opened: {error.strerror}") from error
        version = call(self._fd, Call.GET_API_VERSION)
        if version != uapi.API_VERSION:
            raise EngineError(f"{path} speaks version {version} of KVM's interface, not {uapi.API_VERSION}")
        missing = [each.name for each in _NEEDED if not self.check(each)]
        if missing:
            raise EngineError(f"this host's KVM is too old: it lacks {', '.join(missing)}")

    def check(self, capability: Capability) -> int:
        """0 if KVM does not have it, else its value."""
        return call(self._fd, Call.CHECK_EXTENSION, capability)

    def supported_cpuid(self) -> list[cpuid.CpuidEntry]:
        """The leaves that the CPU and KVM together can offer to a guest."""
        buffer = cpuid.room()
        call(self._fd, Call.GET_SUPPORTED_CPUID, buffer)
        return cpuid.unpack(buffer)

    def msr_indices(self) -> list[int]:
        """The MSRs that this KVM keeps for a guest."""
        buffer = bytearray(struct.pack("<I", _MOST_MSRS) + bytes(4 * _MOST_MSRS))
        call(self._fd, Call.GET_MSR_INDEX_LIST, buffer)
        (count,) = struct.unpack_from("<I", buffer)
        return list(struct.unpack_from(f"<{count}I", buffer, 4))

    def create_vm(self) -> Vm:
        return Vm(call(self._fd, Call.CREATE_VM), call(self._fd, Call.GET_VCPU_MMAP_SIZE))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
