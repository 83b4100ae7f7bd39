"""Which system calls a domain's process may make once its guest runs: these, and no other.

They act on memory, threads, clocks and descriptors that are open. Calls that take a path are answered as by an empty
file system, since Python asks it now and then (for the source line of a traceback, say); all else ends the process.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from pyxen.hypervisor.jail import bpf
from pyxen.hypervisor.jail.bpf import Argument, Instruction
from pyxen.hypervisor.jail.syscalls import NUMBERS
from pyxen.hypervisor.kvm.uapi import Call

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000  # SECCOMP_RET_KILL_PROCESS
TRAP: Final = 0x00030000
LOG: Final = 0x7FFC0000
REFUSE: Final = 0x00050000  # SECCOMP_RET_ERRNO, plus the errno
ARCH_X86_64: Final = 0xC000003E


class Rule(NamedTuple):
    """A call that is allowed where all conditions hold. ``otherwise``: the errno where not; None: like any other."""

    name: str
    arguments: tuple[Argument, ...] = ()
    otherwise: int | None = None


_MAKING_A_MACHINE: Final = frozenset(
    {
        Call.GET_API_VERSION,
        Call.CREATE_VM,
        Call.GET_VCPU_MMAP_SIZE,
        Call.GET_SUPPORTED_CPUID,
        Call.CREATE_VCPU,
        Call.SET_TSS_ADDR,
        Call.SET_IDENTITY_MAP_ADDR,
        Call.CREATE_IRQCHIP,
        Call.GET_MSR_INDEX_LIST,
        Call.ENABLE_CAP,
    }
)
# asm-generic/ioctls.h, linux/fs.h, linux/if_tun.h
_FIONBIO, _FIOCLEX = 0x5421, 0x5451
_BLKGETSIZE64, _BLKSSZGET, _BLKDISCARD = 0x80081272, 0x1268, 0x1277
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETQUEUE = 0x400454D0, 0x400454D8, 0x400454D9
_DEVICES: Final = frozenset(
    {_FIONBIO, _FIOCLEX, _BLKGETSIZE64, _BLKSSZGET, _BLKDISCARD, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ, _TUNSETQUEUE}
)
IOCTLS: Final = frozenset(call.value for call in Call if call not in _MAKING_A_MACHINE) | _DEVICES
"""The requests of ioctl(2): all of KVM's that are used, but those that make a machine; sockets, disks, taps."""

# How pthread_create calls clone(2): VM FS FILES SIGHAND THREAD SYSVSEM SETTLS PARENT_SETTID CHILD_CLEARTID; with musl
# DETACHED too.
_THREAD_FLAGS: Final = frozenset({0x3D0F00, 0x7D0F00})
_AT_EMPTY_PATH: Final = 0x1000
_PUNCH_HOLE_KEEP_SIZE: Final = 3
_PR_SET_NAME: Final = 15
_DONTNEED_FREE_HUGEPAGE_DONTDUMP: Final = frozenset({mmap.MADV_DONTNEED, 8, mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP})
_FCNTLS: Final = frozenset({fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL})
_NOT_EXECUTABLE: Final = (Argument(2, frozenset({0}), mask=mmap.PROT_EXEC),)

_FREE: Final = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close fstat
    fsync fdatasync ftruncate
    epoll_wait epoll_pwait epoll_ctl poll ppoll timerfd_settime
    accept accept4 recvfrom recvmsg sendto sendmsg shutdown getsockname getpeername getsockopt
    eventfd2 munmap mremap brk
    futex set_robust_list get_robust_list rseq set_tid_address sched_yield getcpu exit exit_group
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    getpid gettid getppid getuid geteuid getgid getegid uname sysinfo getrusage times
    time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep getrandom
"""
"""Calls with any arguments, for all that they could do is done to this process alone or to what it has open."""

_NOTHING_THERE: Final = """
    open openat openat2 stat lstat statx access faccessat faccessat2 readlink readlinkat getcwd unlink unlinkat
"""
"""Calls that find no such file, wherever they look."""


def rules(pid: int) -> list[Rule]:
    """For the process ``pid``; what is done most often first."""
    return [
        Rule("ioctl", (Argument(1, IOCTLS),), errno.ENOTTY),
        Rule("futex"),
        *(Rule(name) for name in _FREE.split() if name != "futex"),
        Rule("mmap", _NOT_EXECUTABLE, errno.EPERM),
        Rule("mprotect", _NOT_EXECUTABLE, errno.EPERM),
        Rule("madvise", (Argument(2, _DONTNEED_FREE_HUGEPAGE_DONTDUMP),), errno.EINVAL),
        Rule("fallocate", (Argument(1, frozenset({_PUNCH_HOLE_KEEP_SIZE})),), errno.EOPNOTSUPP),
        Rule("fcntl", (Argument(1, _FCNTLS),), errno.EPERM),
        # The C library's fstat.
        Rule("newfstatat", (Argument(3, frozenset({_AT_EMPTY_PATH}), mask=_AT_EMPTY_PATH),), errno.ENOENT),
        # Its own limits, to be read: glibc asks how large the stack may grow.
        Rule("prlimit64", (Argument(0, frozenset({0})), Argument(2, frozenset({0}))), errno.EPERM),
        # How many CPUs there are.
        Rule("sched_getaffinity", (Argument(0, frozenset({0, pid})),), errno.EPERM),
        # Its own threads, to interrupt a VCPU; and itself, to abort.
        Rule("tgkill", (Argument(0, frozenset({pid})),)),
        Rule("clone", (Argument(0, _THREAD_FLAGS),)),
        Rule("prctl", (Argument(0, frozenset({_PR_SET_NAME})),), errno.EINVAL),
    ]


def refusals() -> Mapping[str, int]:
    """Calls that fail with an errno, whatever their arguments."""
    # The flags of clone3 lie in memory, where a filter can't look: the C library then takes clone.
    return {"clone3": errno.ENOSYS, **dict.fromkeys(_NOTHING_THERE.split(), errno.ENOENT)}


def build(allowed: Iterable[Rule], refused: Mapping[str, int], *, unknown: int = KILL) -> list[Instruction]:
    """The filter: ``unknown`` is what becomes of calls that are in neither list, and of other architectures'."""
    # The 32-bit and x32 calls have numbers of their own: the first have another architecture, the second bit 30 set.
    program = [bpf.load(bpf.ARCH), Instruction(bpf.JUMP_EQUAL, 1, 0, ARCH_X86_64), bpf.give(unknown), bpf.load(bpf.NR)]
    for name, arguments, otherwise in allowed:
        action = unknown if otherwise is None else REFUSE | otherwise
        program += bpf.when(NUMBERS[name], [*bpf.check(arguments, action), bpf.give(ALLOW)])
    for name, code in refused.items():
        program += bpf.when(NUMBERS[name], [bpf.give(REFUSE | code)])
    return [*program, bpf.give(unknown)]
