"""XEN_VERSION: what hypervisor this is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.abi import version as abi
from pyxen.abi.cpuid import VERSION
from pyxen.abi.errno import EINVAL, ENODATA, ENOSYS, EPERM
from pyxen.abi.features import PVH_DOMU
from pyxen.abi.shared_info import PAGE_SIZE
from pyxen.hypervisor.hypercalls import guest

if TYPE_CHECKING:
    from pyxen.hypervisor.vcpu import Vcpu

_EXTRAVERSION = b".0-pyxen"
_CAPABILITIES = b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
_DENIED = b"<denied>"
_VIRT_START = {64: 0xFFFF800000000000, 32: 0xFF800000}


def _texts(cmd: int) -> bytes | None:
    """The answers that are texts, padded with zeros."""
    if cmd == abi.EXTRAVERSION:
        return _EXTRAVERSION.ljust(abi.EXTRAVERSION_SIZE, b"\0")
    if cmd == abi.COMPILE_INFO:
        return b"".join(_DENIED.ljust(size, b"\0") for size in abi.COMPILE_INFO_SIZES)
    if cmd == abi.CAPABILITIES:
        return _CAPABILITIES.ljust(abi.CAPABILITIES_SIZE, b"\0")
    if cmd == abi.CHANGESET:
        return _DENIED.ljust(abi.CHANGESET_SIZE, b"\0")
    return None


def _get_features(vcpu: Vcpu, arg: int) -> int:
    if guest.get(vcpu, abi.FEATURE_INFO, arg, 64).submap_idx != 0:
        return -EINVAL
    guest.put(vcpu, abi.FEATURE_INFO, arg, 64, "submap", PVH_DOMU)
    return 0


def handle(vcpu: Vcpu, args: tuple[int, ...], bits: int) -> int:
    """(cmd, pointer)."""
    cmd, arg = args[0] & 0xFFFFFFFF, args[1]
    if cmd == abi.VERSION:
        return VERSION[0] << 16 | VERSION[1]
    if cmd == abi.GET_FEATURES:
        return _get_features(vcpu, arg)
    if cmd == abi.PAGESIZE:
        return PAGE_SIZE if arg == 0 else -EINVAL
    if cmd == abi.COMMANDLINE:
        return -EPERM
    if cmd == abi.BUILD_ID:
        return -ENODATA
    if cmd == abi.PLATFORM_PARAMETERS:
        answer: bytes | None = _VIRT_START[bits].to_bytes(bits // 8, "little")
    elif cmd == abi.GUEST_HANDLE:
        answer = vcpu.domain.uuid
    else:
        answer = _texts(cmd)
    if answer is None:
        return -ENOSYS
    guest.write(vcpu, arg, answer)
    return 0
