"""Can this machine's KVM run a 64-bit guest? Found out by running one.

``/dev/kvm`` being there means little: some hosts' KVM gives up on instructions that every kernel uses, or emulates
guests at a thousandth of the speed. So a few dozen instructions are run in long mode: a page table walk, ``lock
cmpxchg16b``, ``xsave`` and ``xrstor`` where CPUID has them, a loop, OUT and HLT. That happens in a child process
(``python -m pyxen.engine.probe``), since a KVM_RUN that never returns can only be killed. Its limit is CPU time: a busy
host must not look like a broken one. The verdict is kept until the host boots again.

Numbers are from linux/kvm.h; instructions and page tables from the processor manuals.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CACHE = "kvm.json"
_GUEST_CPU_S = 2.0
"""What the guest may use; it needs a thousandth of it."""
_BOUND_S = 60.0
"""For the whole child by the clock: one that uses no CPU either."""

_GET_API_VERSION, _CREATE_VM, _GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
_GET_SUPPORTED_CPUID, _SET_CPUID2 = 0xC008AE05, 0x4008AE90
_SET_USER_MEMORY_REGION, _CREATE_VCPU, _RUN = 0x4020AE46, 0xAE41, 0xAE80
_SET_REGS, _GET_SREGS, _SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
_API_VERSION = 12
_EXIT_IO, _EXIT_HLT, _EXIT_SHUTDOWN, _EXIT_FAIL_ENTRY, _EXIT_INTERNAL_ERROR = 2, 5, 8, 9, 17
_EXIT_REASON, _EXIT_DATA = 8, 32  # offsets in struct kvm_run

_MEMORY_BYTES = 0x10000
_PML4, _PDPT, _PD, _CODE, _DATA, _XSAVE_AREA, _STACK = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x9000
_PORT, _PASSED, _FAILED = 0xF4, 42, 1
_LOOPS = 250_000
_SLOWEST_LOOPS_PER_S = 3_000_000
"""KVM that emulates does a sixth of it; KVM inside an emulated machine does ten times as much."""
_TRIES = 5
"""A machine that is itself a busy host's guest may lose its CPU in the midst of it, and not even know."""
_XSAVE = 1 << 26  # CPUID leaf 1, ECX

_EXCHANGE = bytes.fromhex(
    "48c7c700500000"  # mov  rdi, _DATA        which holds 1, 2
    "48c7c001000000"  # mov  rax, 1
    "48c7c202000000"  # mov  rdx, 2
    "48c7c303000000"  # mov  rbx, 3
    "48c7c104000000"  # mov  rcx, 4
    "f0480fc70f"  #     lock cmpxchg16b [rdi]
    "7405"  #           je   +5
    "b001e6f4f4"  #     mov  al, _FAILED; out _PORT, al; hlt
    "48833f03"  #       cmp  qword [rdi], 3
    "7405"  #           je   +5
    "b001e6f4f4"
)
_SAVE = bytes.fromhex(
    "31c9"  #           xor  ecx, ecx
    "31d2"  #           xor  edx, edx
    "b803000000"  #     mov  eax, 3            x87 and SSE state
    "0f01d1"  #         xsetbv
    "48c7c600600000"  # mov  rsi, _XSAVE_AREA
    "0fae26"  #         xsave [rsi]
    "0fae2e"  #         xrstor [rsi]
)
_LOOP = (
    b"\xb9"
    + _LOOPS.to_bytes(4, "little")  # mov ecx, _LOOPS
    + bytes.fromhex("ffc975fc")  #    dec ecx; jnz -4
)
_END = bytes.fromhex("b02ae6f4f4")  # mov al, _PASSED; out _PORT, al; hlt


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the probe saw, in a sentence."""

    usable: bool
    reason: str
    hint: str | None = None


def kvm_verdict(state: Path, device: Path = DEVICE) -> Verdict:
    """The verdict for this boot: from ``STATE/kvm.json`` if it is there, else by running a guest (a tenth of a second).

    Whether the device may be opened is looked at each time.
    """
    if (refusal := _refused(device)) is not None:
        return refusal
    key = _key(device)
    cache = state / _CACHE
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(cache.read_text())
        if known["key"] == key:
            return Verdict(**known["verdict"])
    verdict = run_probe()
    with contextlib.suppress(OSError):
        state.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps({"key": key, "verdict": asdict(verdict)}))
        fresh.replace(cache)
    return verdict


def _key(device: Path) -> list[object]:
    """What a verdict holds for: this boot, this device node as it is."""
    found = device.stat()
    return [_BOOT_ID.read_text().strip(), found.st_rdev, found.st_mtime_ns]


def _refused(device: Path) -> Verdict | None:
    """Why the device can't even be opened, if so."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict(
            False,
            f"there is no {device}",
            "Switch virtualization on in the firmware's settings and load the module: modprobe kvm-intel (or kvm-amd).",
        )
    except PermissionError:
        return Verdict(
            False,
            f"{device} may not be opened by this user",
            "Become a member of its group: sudo usermod -aG kvm $USER, then log in again.",
        )
    except OSError as error:
        return Verdict(False, f"{device} can't be opened: {error.strerror}", "Is the module loaded? lsmod | grep kvm")
    return None


def run_probe(argv: list[str] | None = None, bound_s: float = _BOUND_S) -> Verdict:
    """Run the guest in a child process, and kill that after ``bound_s`` seconds; long before, it kills itself."""
    argv = argv or [sys.executable, "-m", "pyxen.engine.probe"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=bound_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Verdict(False, f"its test guest did not get through a few instructions in {bound_s:g} s")
    except OSError as error:
        return Verdict(False, f"the probe could not be run: {error}")
    if done.returncode == -signal.SIGPROF:
        return Verdict(False, f"its test guest did not get through a few instructions in {_GUEST_CPU_S:g} s")
    try:
        return Verdict(**json.loads(done.stdout))
    except (ValueError, TypeError):
        return Verdict(False, f"the probe died with status {done.returncode}")


def probe(device: Path = DEVICE) -> Verdict:
    """Run the guest in this process. It may never return."""
    try:
        speed = 0.0
        for _ in range(_TRIES):
            with contextlib.ExitStack() as stack:
                found = _probe(os.open(device, os.O_RDWR | os.O_CLOEXEC), stack)
            if isinstance(found, Verdict):
                return found
            speed = max(speed, found)
            if found * 2 < _SLOWEST_LOOPS_PER_S:
                break
        return Verdict(False, f"it emulates guests instead of running them: {speed / 1e6:.1f} million loops a second")
    except OSError as error:
        return Verdict(False, f"{device} refused to set up a guest: {error.strerror}")


def _probe(kvm: int, stack: contextlib.ExitStack) -> Verdict | float:
    """A verdict; or how many loops a second it did, which are too few."""
    stack.callback(os.close, kvm)
    if (version := fcntl.ioctl(kvm, _GET_API_VERSION, 0)) != _API_VERSION:
        return Verdict(False, f"it speaks version {version} of the interface, not {_API_VERSION}")
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    stack.callback(os.close, machine)
    cpuid, features = _supported_cpuid(kvm)
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    _fill(memory, xsave=bool(features & _XSAVE))
    fcntl.ioctl(machine, _SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0, _MEMORY_BYTES, _address(memory)))
    vcpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    stack.callback(os.close, vcpu)
    fcntl.ioctl(vcpu, _SET_CPUID2, cpuid)
    _enter_long_mode(vcpu, xsave=bool(features & _XSAVE))
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    stack.callback(run.close)
    return _run(vcpu, run)


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _supported_cpuid(kvm: int) -> tuple[bytearray, int]:
    """A ``struct kvm_cpuid2`` of all that KVM offers, and ECX of its leaf 1."""
    entries = 256
    buffer = bytearray(8 + 40 * entries)
    struct.pack_into("I", buffer, 0, entries)
    fcntl.ioctl(kvm, _GET_SUPPORTED_CPUID, buffer)
    (count,) = struct.unpack_from("I", buffer)
    for number in range(count):
        function, _index, _flags, _eax, _ebx, ecx = struct.unpack_from("6I", buffer, 8 + 40 * number)
        if function == 1:
            return buffer, ecx
    return buffer, 0


def _fill(memory: mmap.mmap, *, xsave: bool) -> None:
    """Page tables that map the first 2 MiB to themselves, the code, and what the code looks at."""
    present_writable, large = 0x3, 0x80
    struct.pack_into("Q", memory, _PML4, _PDPT | present_writable)
    struct.pack_into("Q", memory, _PDPT, _PD | present_writable)
    struct.pack_into("Q", memory, _PD, present_writable | large)
    struct.pack_into("QQ", memory, _DATA, 1, 2)
    code = _EXCHANGE + (_SAVE if xsave else b"") + _LOOP + _END
    memory[_CODE : _CODE + len(code)] = code


def _enter_long_mode(vcpu: int, *, xsave: bool) -> None:
    """Segments, control registers and the instruction pointer, as a 64-bit kernel has them."""
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, _GET_SREGS, sregs)
    # struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable
    code = struct.pack("QIH10B", 0, 0xFFFFFFFF, 0x08, 0xB, 1, 0, 0, 1, 1, 1, 0, 0, 0)
    data = struct.pack("QIH10B", 0, 0xFFFFFFFF, 0x10, 0x3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
    sregs[0:24] = code
    for number in range(1, 6):  # ds, es, fs, gs, ss
        sregs[24 * number : 24 * number + 24] = data
    protected, extension_type, numeric_error, paging = 1 << 0, 1 << 4, 1 << 5, 1 << 31
    pae, fxsr, osxsave = 1 << 5, 1 << 9, 1 << 18
    long_mode, long_mode_active = 1 << 8, 1 << 10
    cr0, cr3, cr4, efer = 224, 240, 248, 264  # offsets after eight segments and two tables
    struct.pack_into("Q", sregs, cr0, protected | extension_type | numeric_error | paging)
    struct.pack_into("Q", sregs, cr3, _PML4)
    struct.pack_into("Q", sregs, cr4, pae | fxsr | (osxsave if xsave else 0))
    struct.pack_into("Q", sregs, efer, long_mode | long_mode_active)
    fcntl.ioctl(vcpu, _SET_SREGS, sregs)
    # struct kvm_regs: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("18Q", *(0,) * 6, _STACK, *(0,) * 9, _CODE, 0x2))


def _run(vcpu: int, run: mmap.mmap) -> Verdict | float:
    started = time.thread_time()
    fcntl.ioctl(vcpu, _RUN, 0)
    elapsed = time.thread_time() - started
    (reason,) = struct.unpack_from("I", run, _EXIT_REASON)
    if reason != _EXIT_IO:
        return Verdict(False, f"its test guest stopped with {_exit_name(reason, run)}")
    _direction, _size, port, _count, offset = struct.unpack_from("=BBHIQ", run, _EXIT_DATA)
    if port != _PORT or run[offset] != _PASSED:
        return Verdict(False, "its test guest got a wrong result from lock cmpxchg16b")
    if elapsed * _SLOWEST_LOOPS_PER_S > _LOOPS:
        return _LOOPS / elapsed
    fcntl.ioctl(vcpu, _RUN, 0)
    (reason,) = struct.unpack_from("I", run, _EXIT_REASON)
    if reason != _EXIT_HLT:
        return Verdict(False, f"its test guest stopped with {_exit_name(reason, run)} at HLT")
    return Verdict(True, "its test guest ran")


def _exit_name(reason: int, run: mmap.mmap) -> str:
    if reason == _EXIT_INTERNAL_ERROR:
        (suberror,) = struct.unpack_from("I", run, _EXIT_DATA)
        return "an emulation failure" if suberror == 1 else f"internal error {suberror}"
    return {
        _EXIT_SHUTDOWN: "a triple fault",
        _EXIT_FAIL_ENTRY: "a failed entry",
    }.get(reason, f"exit {reason}")


def main() -> None:
    """The child process: the verdict as JSON on standard output. The timer's signal, which nobody handles, ends it."""
    signal.setitimer(signal.ITIMER_PROF, _GUEST_CPU_S)
    json.dump(asdict(probe()), sys.stdout)


if __name__ == "__main__":
    main()
