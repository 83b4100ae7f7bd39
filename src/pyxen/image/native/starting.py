"""How the agent starts a command: its streams, its terminal, its place among the processes. Compiled, as the agent."""

from __future__ import annotations

from typing import Final

from pyxen.abi.agent import EXEC_TTY
from pyxen.image.native import linux
from pyxen.image.native.language import (
    copy,
    load8,
    load16,
    load32,
    load64,
    static,
    store16,
    store32,
    store64,
    syscall,
    text,
)

MOST_WORDS: Final = 4096
_PATH_ROOM: Final = 4096

ARGUMENTS = static(8 * (MOST_WORDS + 1))
ENVIRONMENT = static(8 * (MOST_WORDS + 1))
CANDIDATE = static(2 * _PATH_ROOM)
TERMIOS = static(64)
PAIR = static(8)
"""Two descriptors, of 32 bits each."""
THEIRS = static(24)
"""The child's ends of its streams."""
REPORT = static(8)
WINDOW = static(8)


def fill_standard_streams() -> None:
    """Have something at descriptors 0 to 2, so that nothing else gets there."""
    while True:
        fd = syscall(linux.OPEN, text(b"/dev/null"), linux.O_RDWR | linux.O_CLOEXEC)
        if fd < 0 or fd > 2:
            break
    if fd > 2:
        linux.close(fd)


def make_raw(port: int) -> int:
    """If the port is a terminal (Linux' hvc), have it pass on every byte as it is; returns whether it is one."""
    if syscall(linux.IOCTL, port, linux.TCGETS, TERMIOS) < 0:
        return 0
    # struct termios: c_iflag, c_oflag, c_cflag, c_lflag, of 4 bytes each, then c_line and c_cc; VTIME is 5, VMIN 6.
    store32(TERMIOS, 0)
    store32(TERMIOS + 4, 0)
    store32(TERMIOS + 12, 0)
    store16(TERMIOS + 17 + 5, 1 << 8)
    syscall(linux.IOCTL, port, linux.TCSETS, TERMIOS)
    return 1


def exec_command(payload: int, size: int, ours: int, fallback: int) -> int:
    """Start what an EXEC frame describes; returns its process id or an error.

    Our ends of its streams go to ``ours``.
    """
    if size < 17 or load8(payload + size - 1) != 0:
        return -linux.EINVAL
    flags = load32(payload)
    argc = load32(payload + 8)
    envc = load32(payload + 12)
    if argc < 1 or argc > MOST_WORDS or envc > MOST_WORDS:
        return -linux.EINVAL
    folder = payload + 16
    end = payload + size
    place = take_words(folder + linux.length(folder) + 1, end, ARGUMENTS, argc)
    place = take_words(place, end, ENVIRONMENT, envc)
    if place != end:
        return -linux.EINVAL
    error = make_terminal(payload, ours) if flags & EXEC_TTY else make_pipes(ours)
    if error < 0:
        close_all(ours)
        return error
    pid = spawn(folder, flags, fallback)
    if pid < 0:
        close_all(ours)
    return pid


def take_words(place: int, end: int, words: int, count: int) -> int:
    """Put the addresses of ``count`` words and a zero at ``words``; returns the place after them, 0 if they are cut."""
    index = 0
    while index < count:
        if place == 0 or place >= end:
            return 0
        store64(words + 8 * index, place)
        place += linux.length(place) + 1
        index += 1
    store64(words + 8 * count, 0)
    return place


def make_pipes(ours: int) -> int:
    store64(THEIRS, -1)
    store64(THEIRS + 8, -1)
    store64(THEIRS + 16, -1)
    stream = 0
    while stream < 3:
        error = syscall(linux.PIPE2, PAIR, linux.O_CLOEXEC)
        if error < 0:
            close_all(THEIRS)
            return error
        # Of its input we have the end that is written to, of its outputs those that are read from.
        store64(ours + 8 * stream, load32(PAIR + 4) if stream == 0 else load32(PAIR))
        store64(THEIRS + 8 * stream, load32(PAIR) if stream == 0 else load32(PAIR + 4))
        syscall(linux.FCNTL, load64(ours + 8 * stream), linux.F_SETFL, linux.O_NONBLOCK)
        stream += 1
    return 0


def make_terminal(payload: int, ours: int) -> int:
    """A terminal of its own: what it types and what it shows go over one descriptor, which we have twice."""
    flags = linux.O_RDWR | linux.O_NOCTTY | linux.O_CLOEXEC
    pty = syscall(linux.OPEN, text(b"/dev/ptmx"), flags | linux.O_NONBLOCK)
    if pty < 0:
        return pty
    store32(WINDOW, 0)
    syscall(linux.IOCTL, pty, linux.TIOCSPTLCK, WINDOW)
    store64(WINDOW, 0)
    store16(WINDOW, load16(payload + 4))
    store16(WINDOW + 2, load16(payload + 6))
    syscall(linux.IOCTL, pty, linux.TIOCSWINSZ, WINDOW)
    store64(ours + 8, pty)
    store64(ours, syscall(linux.FCNTL, pty, linux.F_DUPFD_CLOEXEC, 3))
    tty = syscall(linux.IOCTL, pty, linux.TIOCGPTPEER, flags)
    if tty < 0:
        return tty
    store64(THEIRS, tty)
    store64(THEIRS + 8, syscall(linux.FCNTL, tty, linux.F_DUPFD_CLOEXEC, 3))
    store64(THEIRS + 16, syscall(linux.FCNTL, tty, linux.F_DUPFD_CLOEXEC, 3))
    return 0


def close_all(fds: int) -> None:
    """Close three descriptors."""
    stream = 0
    while stream < 3:
        if load64(fds + 8 * stream) >= 0:
            linux.close(load64(fds + 8 * stream))
        store64(fds + 8 * stream, -1)
        stream += 1


def spawn(folder: int, flags: int, fallback: int) -> int:
    """The child reports by a pipe why it could not become the command; that it is closed says that it has."""
    error = syscall(linux.PIPE2, PAIR, linux.O_CLOEXEC)
    if error < 0:
        close_all(THEIRS)
        return error
    reading = load32(PAIR)
    writing = load32(PAIR + 4)
    pid = syscall(linux.FORK)
    if pid == 0:
        become(folder, flags, fallback, writing)
    close_all(THEIRS)
    linux.close(writing)
    if pid < 0:
        linux.close(reading)
        return pid
    failed = syscall(linux.READ, reading, REPORT, 8) == 8
    linux.close(reading)
    if failed:
        syscall(linux.WAIT4, pid, 0, 0)
        return load64(REPORT)
    return pid


def become(folder: int, flags: int, fallback: int, report: int) -> None:
    """In the child: does not return."""
    syscall(linux.SETSID)
    stream = 0
    while stream < 3:
        syscall(linux.DUP2, load64(THEIRS + 8 * stream), stream)
        stream += 1
    if flags & EXEC_TTY:
        syscall(linux.IOCTL, 0, linux.TIOCSCTTY, 0)
    error = syscall(linux.CHDIR, folder)
    if error == 0:
        linux.block_signals(0)
        error = execute(load64(ARGUMENTS), fallback)
    store64(REPORT, error)
    syscall(linux.WRITE, report, REPORT, 8)
    syscall(linux.EXIT_GROUP, 127)


def execute(name: int, fallback: int) -> int:
    """Become the program ``name``, looked for on the PATH unless it is a path; returns why it could not be."""
    if has_slash(name):
        return syscall(linux.EXECVE, name, ARGUMENTS, ENVIRONMENT)
    error = -linux.ENOENT
    size = linux.length(name)
    path = find_path()
    while load8(path) and size < _PATH_ROOM:
        count = 0
        while load8(path + count) and load8(path + count) != 58:
            count += 1
        if count < _PATH_ROOM - 1:
            copy(CANDIDATE, path, count)
            copy(CANDIDATE + count, text(b"/"), 1)
            copy(CANDIDATE + count + 1, name, size + 1)
            tried = syscall(linux.EXECVE, CANDIDATE, ARGUMENTS, ENVIRONMENT)
            if tried != -linux.ENOENT and tried != -linux.ENOTDIR:
                error = tried
        path += count
        if load8(path):
            path += 1
    if error == -linux.ENOENT and fallback:
        error = syscall(linux.EXECVE, fallback, ARGUMENTS, ENVIRONMENT)
    return error


def has_slash(name: int) -> int:
    while load8(name):
        if load8(name) == 47:
            return 1
        name += 1
    return 0


def find_path() -> int:
    """The value of PATH in the command's environment, or a usual one."""
    index = 0
    while load64(ENVIRONMENT + 8 * index):
        word = load64(ENVIRONMENT + 8 * index)
        if load32(word) == 0x48544150 and load8(word + 4) == 61:  # "PATH", "="
            return word + 5
        index += 1
    return text(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
