"""The agent: carries out in a guest what the host asks for, by the protocol of :mod:`pyxen.abi.agent`.

    agent PORT [FALLBACK]

PORT is the device that leads to the host, or "-" for standard input and output in one. FALLBACK is a program that is
tried under the name of a command that is nowhere on its PATH: busybox, which then is that command.

One thread that waits in poll for the host, for its children and for their pipes. It never waits for anything else:
what can't be written yet is kept, in room of fixed size, and what there is no room for is not read.
This file is compiled (``compiler``), so it has integers and memory, and no objects.
"""

from __future__ import annotations

from typing import Final

from pyxen.abi.agent import (
    EXEC_TTY,
    HEADER_SIZE,
    MOST_COMMANDS,
    MOST_PAYLOAD,
    NONCE_SIZE,
    OUTPUT_WINDOW,
    STDIN_WINDOW,
    VERSION,
    Kind,
    Stream,
)
from pyxen.image.native import linux
from pyxen.image.native.language import (
    copy,
    load8,
    load16,
    load32,
    load64,
    static,
    store8,
    store16,
    store32,
    store64,
    syscall,
    text,
)
from pyxen.image.native.starting import exec_command, fill_standard_streams, make_raw

CHUNK: Final = 16384
"""Output is read in pieces of this size."""
IN_ROOM: Final = HEADER_SIZE + MOST_PAYLOAD
OUT_ROOM: Final = 1 << 17
ANSWER_ROOM: Final = 1024
"""With less room than this for answers no frame is looked at."""

# A command or file: a slot of 64-bit numbers, then the input that it has not taken yet.
USED: Final = 0
ID: Final = 8
PID: Final = 16
"""0: there is no process (any more)."""
STATUS: Final = 24
ENDED: Final = 32
"""The process has ended, or the file's last byte has been written."""
FD: Final = 40
"""Three descriptors, by Stream; -1: none (any more)."""
CREDIT: Final = 64
"""Three numbers: how many bytes of an output the host will still take."""
INPUT: Final = 88
"""How many bytes of input wait."""
INPUT_ENDS: Final = 96
IS_TTY: Final = 104
"""1, or LET_GO of: the command has closed its terminal."""
IS_FILE: Final = 112
DATA: Final = 128
SLOT: Final = DATA + STDIN_WINDOW

LET_GO: Final = 2

PORT_GONE: Final = 3
"""The exit status that has start-agent look for the port anew."""

_POLLS_FIRST: Final = 2
_POLLFD: Final = 8

PORT = static(8)
IS_TERMINAL = static(8)
"""The port is Xen's console: one that hangs up is gone, and its name will be another's."""
SIGNALS = static(8)
HUNG_UP = static(8)
"""The host is not connected; a SIGIO will tell when it is."""
RECEIVED = static(IN_ROOM)
RECEIVED_COUNT = static(8)
SENDING = static(OUT_ROOM)
SENDING_COUNT = static(8)
SLOTS = static(SLOT * MOST_COMMANDS)
POLLS = static(_POLLFD * (_POLLS_FIRST + 3 * MOST_COMMANDS))
FALLBACK = static(8)
SCRATCH = static(1024)


def main(stack: int) -> int:
    """``stack``: argc, then the arguments' addresses."""
    if load64(stack) < 2:
        syscall(linux.WRITE, 2, text(b"usage: agent PORT [FALLBACK]\n"), 29)
        return 2
    fill_standard_streams()
    store64(FALLBACK, load64(stack + 24) if load64(stack) > 2 else 0)
    path = load64(stack + 16)
    port = 0
    if load8(path) != 45 or load8(path + 1) != 0:
        port = syscall(linux.OPEN, path, linux.O_RDWR | linux.O_NOCTTY | linux.O_CLOEXEC)
        if port < 0:
            return 1
    store64(PORT, port)
    store64(IS_TERMINAL, make_raw(port))
    linux.block_signals(-1)
    store64(SCRATCH, 1 << linux.SIGCHLD - 1 | 1 << linux.SIGIO - 1 | 1 << linux.SIGTERM - 1)
    store64(SIGNALS, syscall(linux.SIGNALFD4, -1, SCRATCH, 8, linux.O_NONBLOCK | linux.O_CLOEXEC))
    syscall(linux.FCNTL, port, linux.F_SETOWN, syscall(linux.GETPID))
    syscall(linux.FCNTL, port, linux.F_SETFL, linux.O_NONBLOCK | linux.O_ASYNC)
    syscall(linux.UMASK, 0o022)
    syscall(linux.CHDIR, text(b"/"))
    while True:
        turn()


def turn() -> None:
    """Wait until something can be done, and do it."""
    wait()
    take_signals()
    if not load64(HUNG_UP):
        receive()
    obey()
    number = 0
    while number < MOST_COMMANDS:
        slot = SLOTS + SLOT * number
        if load64(slot + USED):
            serve(slot, POLLS + _POLLFD * (_POLLS_FIRST + 3 * number))
        number += 1
    send()


def wait() -> None:
    set_poll(POLLS, load64(SIGNALS), linux.POLLIN)
    events = linux.POLLIN if load64(RECEIVED_COUNT) < IN_ROOM else 0
    if load64(SENDING_COUNT):
        events |= linux.POLLOUT
    set_poll(POLLS + _POLLFD, -1 if load64(HUNG_UP) else load64(PORT), events)
    timeout = -1
    number = 0
    while number < MOST_COMMANDS:
        slot = SLOTS + SLOT * number
        poll = POLLS + _POLLFD * (_POLLS_FIRST + 3 * number)
        set_poll(poll, -1, 0)
        set_poll(poll + _POLLFD, -1, 0)
        set_poll(poll + 2 * _POLLFD, -1, 0)
        if load64(slot + USED):
            if load64(slot + INPUT):
                set_poll(poll, load64(slot + FD), linux.POLLOUT)
            if can_send(slot, Stream.OUT):
                set_poll(poll + _POLLFD, load64(slot + FD + 8), linux.POLLIN)
            if can_send(slot, Stream.ERR):
                set_poll(poll + 2 * _POLLFD, load64(slot + FD + 16), linux.POLLIN)
            if load64(slot + ENDED) and (can_send(slot, Stream.OUT) or can_send(slot, Stream.ERR) or drained(slot)):
                timeout = 0
        number += 1
    if room() < ANSWER_ROOM or load64(HUNG_UP):
        timeout = -1
    syscall(linux.POLL, POLLS, _POLLS_FIRST + 3 * MOST_COMMANDS, timeout)


def set_poll(entry: int, fd: int, events: int) -> None:
    store32(entry, fd)
    store32(entry + 4, events)


def room() -> int:
    return OUT_ROOM - load64(SENDING_COUNT)


def can_send(slot: int, stream: int) -> int:
    """Is there an output to read, and room for a piece of it, here and with the host?"""
    return (
        load64(slot + FD + 8 * stream) >= 0
        and load64(slot + CREDIT + 8 * stream) > 0
        and room() >= CHUNK + HEADER_SIZE + ANSWER_ROOM
        and (load64(slot + IS_TTY) != LET_GO or load64(slot + ENDED))
    )


def drained(slot: int) -> int:
    return load64(slot + FD + 8) < 0 and load64(slot + FD + 16) < 0


def take_signals() -> None:
    while syscall(linux.READ, load64(SIGNALS), SCRATCH, 128) > 0:
        if load32(SCRATCH) == linux.SIGIO:
            store64(HUNG_UP, 0)
        if load32(SCRATCH) == linux.SIGTERM:
            hang_up()
            syscall(linux.EXIT_GROUP, 0)
    while True:
        pid = syscall(linux.WAIT4, -1, SCRATCH, linux.WNOHANG)
        if pid <= 0:
            break
        number = 0
        while number < MOST_COMMANDS:
            slot = SLOTS + SLOT * number
            if load64(slot + USED) and load64(slot + PID) == pid:
                store64(slot + PID, 0)
                store64(slot + STATUS, load32(SCRATCH))
                store64(slot + ENDED, 1)
            number += 1


def receive() -> None:
    """Take what has come from the host."""
    while load64(RECEIVED_COUNT) < IN_ROOM:
        have = load64(RECEIVED_COUNT)
        count = syscall(linux.READ, load64(PORT), RECEIVED + have, IN_ROOM - have)
        if count > 0:
            store64(RECEIVED_COUNT, have + count)
            return
        if count == -linux.EINTR:
            continue
        if count == -linux.EAGAIN:
            return
        hang_up()
        if load64(IS_TERMINAL):
            syscall(linux.EXIT_GROUP, PORT_GONE)
        if count < 0 or load64(PORT) == 0:
            syscall(linux.EXIT_GROUP, 0 if count == 0 else 1)
        store64(HUNG_UP, 1)
        store64(RECEIVED_COUNT, 0)
        return


def send() -> None:
    """Give the host what it will take."""
    count = load64(SENDING_COUNT)
    if count == 0 or load64(HUNG_UP):
        return
    written = syscall(linux.WRITE, load64(PORT), SENDING, count)
    if written > 0:
        copy(SENDING, SENDING + written, count - written)
        store64(SENDING_COUNT, count - written)


def obey() -> None:
    """Carry out the frames that are there as a whole. What can't be a frame's beginning is skipped, byte by byte."""
    position = 0
    count = load64(RECEIVED_COUNT)
    while count - position >= HEADER_SIZE and room() >= ANSWER_ROOM:
        frame = RECEIVED + position
        size = load32(frame + 4)
        kind = load8(frame)
        if kind == 0 or kind > Kind.RESEED or size > MOST_PAYLOAD:
            position += 1
            continue
        if count - position < HEADER_SIZE + size:
            break
        carry_out(kind, load8(frame + 1), load16(frame + 2), frame + HEADER_SIZE, size)
        position += HEADER_SIZE + size
    copy(RECEIVED, RECEIVED + position, count - position)
    store64(RECEIVED_COUNT, count - position)


def carry_out(kind: int, stream: int, number: int, payload: int, size: int) -> None:
    if kind == Kind.HELLO and size == NONCE_SIZE:
        greet(payload)
    elif kind == Kind.EXEC:
        start(number, payload, size)
    elif kind == Kind.OPEN:
        open_file(stream, number, payload, size)
    elif kind == Kind.SET_TIME and size == 16:
        answer(number, -syscall(linux.CLOCK_SETTIME, 0, payload))
    elif kind == Kind.RESEED and size <= 512:
        answer(number, reseed(payload, size))
    else:
        slot = find(number)
        if slot:
            tell(slot, kind, stream, payload, size)


def tell(slot: int, kind: int, stream: int, payload: int, size: int) -> None:
    """Frames about a command that runs."""
    if kind == Kind.DATA:
        take_input(slot, payload, size)
    elif kind == Kind.ACK and size == 4 and stream <= Stream.ERR:
        credit = load64(slot + CREDIT + 8 * stream) + load32(payload)
        store64(slot + CREDIT + 8 * stream, credit if credit < OUTPUT_WINDOW else OUTPUT_WINDOW)
    elif kind == Kind.SIGNAL and size == 1 and load64(slot + PID) > 0:
        syscall(linux.KILL, -load64(slot + PID), load8(payload))
    elif kind == Kind.RESIZE and size == 4 and load64(slot + IS_TTY):
        resize(load64(slot + FD + 8), payload)


def resize(tty: int, payload: int) -> None:
    store64(SCRATCH, 0)
    store16(SCRATCH, load16(payload))
    store16(SCRATCH + 2, load16(payload + 2))
    syscall(linux.IOCTL, tty, linux.TIOCSWINSZ, SCRATCH)


def greet(nonce: int) -> None:
    """A host has come: whatever an earlier one had running ends, and nothing of it is sent any more."""
    hang_up()
    begin(Kind.HELLO, 0, 0, NONCE_SIZE + 8)
    add(nonce, NONCE_SIZE)
    add32(VERSION)
    add32(0)


def hang_up() -> None:
    """Forget all commands; their processes get the signal of a terminal that is gone."""
    number = 0
    while number < MOST_COMMANDS:
        slot = SLOTS + SLOT * number
        if load64(slot + USED):
            if load64(slot + PID) > 0:
                syscall(linux.KILL, -load64(slot + PID), linux.SIGHUP)
                syscall(linux.KILL, -load64(slot + PID), linux.SIGCONT)
            release(slot)
        number += 1
    store64(SENDING_COUNT, 0)


def release(slot: int) -> None:
    close_stream(slot, Stream.IN)
    close_stream(slot, Stream.OUT)
    close_stream(slot, Stream.ERR)
    store64(slot + USED, 0)


def close_stream(slot: int, stream: int) -> None:
    fd = load64(slot + FD + 8 * stream)
    if fd >= 0:
        linux.close(fd)
    store64(slot + FD + 8 * stream, -1)


def find(number: int) -> int:
    """The slot of this id; 0 if there is none."""
    index = 0
    while index < MOST_COMMANDS:
        slot = SLOTS + SLOT * index
        if load64(slot + USED) and load64(slot + ID) == number:
            return slot
        index += 1
    return 0


def new_slot(number: int) -> int:
    """A free slot, made ready; 0, and an answer that says why, if there is none."""
    if find(number):
        answer(number, linux.EBUSY)
        return 0
    index = 0
    while index < MOST_COMMANDS:
        slot = SLOTS + SLOT * index
        if not load64(slot + USED):
            offset = 0
            while offset < DATA:
                store64(slot + offset, 0)
                offset += 8
            store64(slot + ID, number)
            stream = 0
            while stream <= Stream.ERR:
                store64(slot + FD + 8 * stream, -1)
                store64(slot + CREDIT + 8 * stream, OUTPUT_WINDOW)
                stream += 1
            return slot
        index += 1
    answer(number, linux.EAGAIN)
    return 0


def start(number: int, payload: int, size: int) -> None:
    """Start a command."""
    slot = new_slot(number)
    if not slot:
        return
    flags = load32(payload) if size >= 16 else 0
    pid = exec_command(payload, size, slot + FD, load64(FALLBACK))
    if pid < 0:
        answer(number, -pid)
        return
    store64(slot + USED, 1)
    store64(slot + PID, pid)
    store64(slot + IS_TTY, flags & EXEC_TTY)
    started(number, pid, 0)


def open_file(stream: int, number: int, payload: int, size: int) -> None:
    """Open a file to be read or written."""
    if size < 6 or load8(payload + size - 1) != 0:
        answer(number, linux.EINVAL)
        return
    slot = new_slot(number)
    if not slot:
        return
    flags = linux.O_CLOEXEC | linux.O_NOCTTY | linux.O_NONBLOCK
    if stream == Stream.IN:
        flags |= linux.O_WRONLY | linux.O_CREAT | linux.O_TRUNC
    fd = syscall(linux.OPEN, payload + 4, flags, load32(payload) & 0o7777)
    if fd < 0:
        answer(number, -fd)
        return
    syscall(linux.FSTAT, fd, SCRATCH)
    mode = load32(SCRATCH + linux.STAT_MODE)
    if mode & linux.S_IFMT == linux.S_IFDIR:
        linux.close(fd)
        answer(number, linux.EISDIR)
        return
    store64(slot + FD + 8 * stream, fd)
    store64(slot + IS_FILE, 1)
    store64(slot + USED, 1)
    started(number, mode, load64(SCRATCH + linux.STAT_SIZE))


def take_input(slot: int, payload: int, size: int) -> None:
    """Keep what the host sends to a command until it reads it."""
    if size == 0:
        store64(slot + INPUT_ENDS, 1)
        return
    have = load64(slot + INPUT)
    if load64(slot + FD) < 0:
        acknowledge(slot, size)
    elif have + size <= STDIN_WINDOW:
        copy(slot + DATA + have, payload, size)
        store64(slot + INPUT, have + size)


def serve(slot: int, poll: int) -> None:
    """Move a command's input and output on, and say when it has ended."""
    if load64(slot + FD) >= 0:
        give_input(slot)
    if not load64(slot + USED):
        return
    ended = load64(slot + ENDED)
    stream = 1
    while stream <= Stream.ERR:
        if can_send(slot, stream) and (ended or load16(poll + _POLLFD * stream + 6)):
            take_output(slot, stream)
        if not load64(slot + USED):
            return
        stream += 1
    if drained(slot) and room() >= ANSWER_ROOM:
        if load64(slot + IS_FILE):
            ended = load64(slot + FD) < 0
        if ended:
            begin(Kind.EXIT, 0, load64(slot + ID), 4)
            add32(load64(slot + STATUS))
            release(slot)


def give_input(slot: int) -> None:
    count = load64(slot + INPUT)
    if count and room() >= ANSWER_ROOM:
        written = syscall(linux.WRITE, load64(slot + FD), slot + DATA, count)
        if written > 0:
            copy(slot + DATA, slot + DATA + written, count - written)
            store64(slot + INPUT, count - written)
            acknowledge(slot, written)
        elif written != -linux.EAGAIN and written != -linux.EINTR:
            if load64(slot + IS_FILE):
                answer(load64(slot + ID), -written)
                release(slot)
                return
            # Nobody reads it any more: the rest is taken and thrown away.
            close_stream(slot, Stream.IN)
            store64(slot + INPUT, 0)
            acknowledge(slot, count)
    if load64(slot + INPUT_ENDS) and load64(slot + INPUT) == 0 and load64(slot + FD) >= 0:
        if load64(slot + IS_TTY):
            store8(SCRATCH, 4)  # as Ctrl-D typed
            syscall(linux.WRITE, load64(slot + FD), SCRATCH, 1)
        close_stream(slot, Stream.IN)


def take_output(slot: int, stream: int) -> None:
    """Read a piece of output into a frame of its own. What has ended and says nothing now will say nothing more."""
    credit = load64(slot + CREDIT + 8 * stream)
    frame = SENDING + load64(SENDING_COUNT)
    fd = load64(slot + FD + 8 * stream)
    count = syscall(linux.READ, fd, frame + HEADER_SIZE, CHUNK if credit > CHUNK else credit)
    if count > 0:
        begin(Kind.DATA, stream, load64(slot + ID), count)
        store64(SENDING_COUNT, load64(SENDING_COUNT) + count)
        store64(slot + CREDIT + 8 * stream, credit - count)
        return
    if count == -linux.EINTR or (count == -linux.EAGAIN and not load64(slot + ENDED)):
        return
    if load64(slot + IS_TTY) and not load64(slot + ENDED):
        # It has closed its terminal and may be about to exit. If we closed our side now, that would hang up on it.
        store64(slot + IS_TTY, LET_GO)
        return
    if count < 0 and load64(slot + IS_FILE):
        answer(load64(slot + ID), -count)
        release(slot)
        return
    close_stream(slot, stream)
    begin(Kind.DATA, stream, load64(slot + ID), 0)


def acknowledge(slot: int, count: int) -> None:
    begin(Kind.ACK, Stream.IN, load64(slot + ID), 4)
    add32(count)


def answer(number: int, error: int) -> None:
    begin(Kind.RESULT, 0, number, 4)
    add32(error)


def started(number: int, first: int, size: int) -> None:
    begin(Kind.STARTED, 0, number, 16)
    add32(first)
    add32(0)
    store64(SENDING + load64(SENDING_COUNT), size)
    store64(SENDING_COUNT, load64(SENDING_COUNT) + 8)


def begin(kind: int, stream: int, number: int, size: int) -> None:
    """Add a frame's header to what is sent."""
    frame = SENDING + load64(SENDING_COUNT)
    store8(frame, kind)
    store8(frame + 1, stream)
    store16(frame + 2, number)
    store32(frame + 4, size)
    store64(SENDING_COUNT, load64(SENDING_COUNT) + HEADER_SIZE)


def add(address: int, count: int) -> None:
    copy(SENDING + load64(SENDING_COUNT), address, count)
    store64(SENDING_COUNT, load64(SENDING_COUNT) + count)


def add32(value: int) -> None:
    store32(SENDING + load64(SENDING_COUNT), value)
    store64(SENDING_COUNT, load64(SENDING_COUNT) + 4)


def reseed(payload: int, size: int) -> int:
    """Credit the host's random bytes to the guest's pool, and have its generator use them at once; an error or 0."""
    fd = syscall(linux.OPEN, text(b"/dev/urandom"), linux.O_RDWR | linux.O_CLOEXEC)
    if fd < 0:
        return -fd
    store32(SCRATCH, 8 * size)
    store32(SCRATCH + 4, size)
    copy(SCRATCH + 8, payload, size)
    result = syscall(linux.IOCTL, fd, linux.RNDADDENTROPY, SCRATCH)
    if result == 0:
        result = syscall(linux.IOCTL, fd, linux.RNDRESEEDCRNG, 0)
    linux.close(fd)
    return -result
