"""Linux' system calls as compiled programs use them: x86-64 numbers and constants, and calls that several need."""

from __future__ import annotations

from typing import Final

from pyxen.image.native.language import load8, static, store64, syscall

READ: Final = 0
WRITE: Final = 1
OPEN: Final = 2
CLOSE: Final = 3
FSTAT: Final = 5
POLL: Final = 7
SIGPROCMASK: Final = 14
IOCTL: Final = 16
DUP2: Final = 33
GETPID: Final = 39
FORK: Final = 57
EXECVE: Final = 59
WAIT4: Final = 61
KILL: Final = 62
FCNTL: Final = 72
CHDIR: Final = 80
UMASK: Final = 95
SETSID: Final = 112
CLOCK_SETTIME: Final = 227
EXIT_GROUP: Final = 231
SIGNALFD4: Final = 289
PIPE2: Final = 293

O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2
O_CREAT: Final = 0o100
O_NOCTTY: Final = 0o400
O_TRUNC: Final = 0o1000
O_NONBLOCK: Final = 0o4000
O_ASYNC: Final = 0o20000
O_CLOEXEC: Final = 0o2000000

F_SETFL: Final = 4
F_SETOWN: Final = 8
F_DUPFD_CLOEXEC: Final = 1030

POLLIN: Final = 1
POLLOUT: Final = 4

EPERM: Final = 1
ENOENT: Final = 2
EAGAIN: Final = 11
EACCES: Final = 13
EBUSY: Final = 16
ENOTDIR: Final = 20
EISDIR: Final = 21
EINVAL: Final = 22
EINTR: Final = 4

SIGHUP: Final = 1
SIGTERM: Final = 15
SIGCHLD: Final = 17
SIGCONT: Final = 18
SIGIO: Final = 29
SIG_SETMASK: Final = 2
WNOHANG: Final = 1

TCGETS: Final = 0x5401
TCSETS: Final = 0x5402
TIOCSCTTY: Final = 0x540E
TIOCSWINSZ: Final = 0x5414
TIOCSPTLCK: Final = 0x40045431
TIOCGPTPEER: Final = 0x5441
RNDADDENTROPY: Final = 0x40085203
RNDRESEEDCRNG: Final = 0x5207

STAT_MODE: Final = 24
STAT_SIZE: Final = 48
STAT_BYTES: Final = 144
S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000

_MASK = static(8)


def close(fd: int) -> None:
    syscall(CLOSE, fd)


def block_signals(mask: int) -> None:
    """``mask``: a bit for each signal, the first one's is bit 0."""
    store64(_MASK, mask)
    syscall(SIGPROCMASK, SIG_SETMASK, _MASK, 0, 8)


def length(address: int) -> int:
    """Of bytes up to a zero byte."""
    count = 0
    while load8(address + count):
        count += 1
    return count
