"""What the filter decides, call by call, as found out by running it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from pyxen.hypervisor.jail import bpf, landlock, policy
from pyxen.hypervisor.jail.bpf import Argument, Instruction
from pyxen.hypervisor.jail.policy import ALLOW, ARCH_X86_64, KILL, REFUSE
from pyxen.hypervisor.jail.syscalls import NAMES, NUMBERS
from pyxen.hypervisor.kvm.uapi import Call
from tests.unit.hypervisor.jail.interpreter import decide

PID = 4321
I386, X32 = 0x40000003, 0x40000000
FILTER = policy.build(policy.rules(PID), policy.refusals())
CODE = bpf.assemble(FILTER)
_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_HIGH = 0xABCD_0000_0000


def decision(name: str, *arguments: int) -> int:
    return decide(CODE, ARCH_X86_64, NUMBERS[name], arguments)


@pytest.mark.parametrize(
    "name",
    [
        *("read", "write", "preadv2", "pwritev2", "fdatasync", "accept4", "recvmsg", "sendto", "futex"),
        *("epoll_wait", "timerfd_settime", "restart_syscall", "rt_sigreturn", "munmap", "exit_group", "clock_gettime"),
    ],
)
def test_what_the_process_lives_on(name: str) -> None:
    assert decision(name) == ALLOW


@pytest.mark.parametrize(
    "name",
    [
        *("execve", "execveat", "fork", "vfork", "ptrace", "kill", "tkill", "socket", "connect", "bind", "listen"),
        *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "setuid", "setresuid", "capset", "bpf"),
        *("io_uring_setup", "userfaultfd", "perf_event_open", "process_vm_readv", "process_vm_writev", "pidfd_open"),
        *("pidfd_getfd", "pidfd_send_signal", "memfd_create", "keyctl", "add_key", "init_module", "kexec_load"),
        *("open_by_handle_at", "seccomp", "personality", "modify_ldt", "iopl", "rename", "link", "symlink", "mkdir"),
        *("chmod", "fchmod", "chown", "fchown", "truncate", "mknod", "shmat", "msgget", "socketpair", "pipe2"),
    ],
)
def test_what_ends_the_process(name: str) -> None:
    assert decision(name) == KILL


@pytest.mark.parametrize("name", ["open", "openat", "openat2", "stat", "newfstatat", "unlink", "getcwd", "readlink"])
def test_what_finds_an_empty_file_system(name: str) -> None:
    assert decision(name) == REFUSE | errno.ENOENT


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ioctl", (3, Call.RUN), ALLOW),
        ("ioctl", (3, Call.RUN | _HIGH), ALLOW),  # the kernel looks at 32 bits too
        ("ioctl", (3, Call.SIGNAL_MSI), ALLOW),
        ("ioctl", (3, 0x400454D0), ALLOW),  # TUNSETOFFLOAD
        ("ioctl", (3, Call.CREATE_VM), REFUSE | errno.ENOTTY),
        ("ioctl", (3, 0x5412), REFUSE | errno.ENOTTY),  # TIOCSTI
        ("ioctl", (3, 0x400454CA), REFUSE | errno.ENOTTY),  # TUNSETIFF
        ("mmap", (0, 4096, 3, 0x22), ALLOW),
        ("mmap", (0, 4096, 7, 0x22), REFUSE | errno.EPERM),
        ("mprotect", (0x1000, 4096, 1), ALLOW),
        ("mprotect", (0x1000, 4096, 5), REFUSE | errno.EPERM),
        ("mprotect", (0x1000, 4096, 4 | _HIGH), REFUSE | errno.EPERM),
        ("madvise", (0x1000, 4096, 4), ALLOW),
        ("madvise", (0x1000, 4096, 12), REFUSE | errno.EINVAL),  # MERGEABLE
        ("fallocate", (3, 3, 0, 4096), ALLOW),
        ("fallocate", (3, 0, 0, 1 << 40), REFUSE | errno.EOPNOTSUPP),  # room on the host's disk
        ("clone", (0x3D0F00,), ALLOW),
        ("clone", (0x01200011,), KILL),  # fork
        ("clone", (0x3D0F00 | 0x10000000,), KILL),  # a thread in a user namespace
        ("clone3", (0, 88), REFUSE | errno.ENOSYS),
        ("tgkill", (PID, PID + 1, 10), ALLOW),
        ("tgkill", (PID - 1, PID - 1, 9), KILL),
        ("prctl", (15,), ALLOW),
        ("prctl", (22, 2), REFUSE | errno.EINVAL),
        ("fcntl", (3, 4), ALLOW),  # F_SETFL
        ("fcntl", (3, 8), REFUSE | errno.EPERM),  # F_SETOWN: signals for others
        ("newfstatat", (3, 0, 0, 0x1000), ALLOW),
        ("newfstatat", (3, 0, 0, 0x100), REFUSE | errno.ENOENT),
        ("prlimit64", (0, 3, 0, 1), ALLOW),
        ("prlimit64", (0, 3, 1, 0), REFUSE | errno.EPERM),
        ("prlimit64", (1, 3, 0, 1), REFUSE | errno.EPERM),
    ],
)
def test_what_depends_on_arguments(name: str, arguments: tuple[int, ...], expected: int) -> None:
    assert decision(name, *arguments) == expected


@pytest.mark.parametrize("arch", [I386, 0xC00000B7, 0])
def test_other_architectures_calls_end_the_process(arch: int) -> None:
    assert all(decide(CODE, arch, nr) == KILL for nr in range(600))


def test_x32_and_unheard_of_calls_end_the_process() -> None:
    assert all(decide(CODE, ARCH_X86_64, X32 | nr) == KILL for nr in range(600))
    assert all(decide(CODE, ARCH_X86_64, nr) == KILL for nr in (-1, 335, 423, 600, 0x7FFFFFFF))


def test_no_call_is_allowed_that_is_in_no_list() -> None:
    rules = {rule.name for rule in policy.rules(PID)}
    assert {name for name in NUMBERS if decision(name) != KILL} <= rules | set(policy.refusals())
    assert len(rules) < 90


def test_no_ioctl_is_allowed_that_is_in_no_list() -> None:
    allowed = {request for request in range(0x5400, 0x5500) if decision("ioctl", 0, request) == ALLOW}
    assert allowed == {0x5421, 0x5451}
    kvm = {0xAE00 + nr for nr in range(256)}
    assert {request for request in kvm if decision("ioctl", 0, request) == ALLOW} == policy.IOCTLS & kvm


def test_a_development_filter_differs_in_its_last_word_alone() -> None:
    code = bpf.assemble(policy.build(policy.rules(PID), policy.refusals(), unknown=policy.TRAP))
    for name in NUMBERS:
        found = decide(code, ARCH_X86_64, NUMBERS[name])
        assert found == (policy.TRAP if decision(name) == KILL else decision(name)), name


@pytest.mark.skipif(not _HEADER.exists(), reason=f"{_HEADER} is missing (linux-libc-dev)")
def test_the_numbers_are_the_kernels() -> None:
    theirs = {name: int(nr) for name, nr in re.findall(r"#define __NR_(\w+) (\d+)", _HEADER.read_text())}
    assert {name: theirs.get(name, nr) for name, nr in NUMBERS.items()} == NUMBERS
    assert NAMES[59] == "execve"


@pytest.mark.parametrize(
    "program",
    [
        [],
        [bpf.load(0)],
        [Instruction(bpf.JUMP_EQUAL, 1, 0, 0), bpf.give(ALLOW)],
        [*bpf.when(1, [bpf.give(ALLOW)] * 256), bpf.give(KILL)],
        [bpf.give(ALLOW)] * 4097,
    ],
)
def test_what_the_kernel_would_refuse_is_not_assembled(program: list[Instruction]) -> None:
    with pytest.raises(ValueError, match=r"filter|jumps|return"):
        bpf.assemble(program)


def test_conditions_all_count() -> None:
    both = bpf.check([Argument(1, frozenset({5, 6, 7})), Argument(2, frozenset({8}), mask=0xC)], 99)
    code = bpf.assemble([*both, bpf.give(1)])
    for first in range(10):
        for second in range(16):
            wanted = 1 if first in (5, 6, 7) and second & 0xC == 8 else 99
            assert decide(code, 0, 0, (0, first, second)) == wanted


@pytest.mark.parametrize(
    ("abi", "words"),
    [
        (1, (0x1FFF,)),
        (2, (0x3FFF,)),
        (3, (0x7FFF,)),
        (4, (0x7FFF, 3)),
        (5, (0xFFFF, 3)),
        (6, (0xFFFF, 3, 3)),
        (9, (0xFFFF, 3, 3)),
    ],
)
def test_landlock_forbids_all_that_a_version_knows(abi: int, words: tuple[int, ...]) -> None:
    assert landlock.ruleset(abi) == b"".join(word.to_bytes(8, "little") for word in words)
