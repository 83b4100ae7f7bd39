"""The protocol that xend and a guest's agent speak; docs/reference/agent.md describes it.

A frame is a header of 8 bytes, little-endian, and as many bytes of payload as its length says:

    0  kind      (1 byte) of Kind; 0 is no frame but a byte of padding
    1  stream    (1 byte) of Stream, where the kind has one
    2  id        (2 bytes) of the command or file that it is about; the host chooses it
    4  length    (4 bytes) of the payload, at most MOST_PAYLOAD
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

VERSION: Final = 1
PORT_NAME: Final = "org.pyxen.agent.0"
"""Of the virtio-serial port; under Xen the agent has the console device 1 (/dev/hvc1)."""

HEADER_SIZE: Final = 8
MOST_PAYLOAD: Final = 1 << 16
STDIN_WINDOW: Final = 1 << 16
"""Bytes of input that may be on their way to one command, until it has taken them (ACK)."""
OUTPUT_WINDOW: Final = 1 << 18
"""Bytes of each of a command's outputs that may be on their way to the host."""
MOST_COMMANDS: Final = 16
NONCE_SIZE: Final = 16


class Kind(IntEnum):
    """What a frame is. H: sent by the host, G: by the guest."""

    HELLO = 1
    """H: a nonce of 16 bytes; what ran before is hung up. G: the nonce, VERSION (4 bytes), 0 (4)."""
    EXEC = 2
    """H: flags (4), rows (2), columns (2), how many arguments (4), how many of the environment (4); then, each ended
    by a zero byte, the working folder, the arguments, the environment. Answer: STARTED or RESULT."""
    OPEN = 3
    """H: mode (4), path and a zero byte. The stream says whether it is read (OUT) or written (IN)."""
    STARTED = 4
    """G: process id, or the file's mode (4); 0 (4); the file's size (8)."""
    DATA = 5
    """H: input, G: output; without a payload: that is all of it."""
    ACK = 6
    """Bytes of a stream (4) that have been taken."""
    SIGNAL = 7
    """H: number of a signal (1) for all of the command's process group."""
    RESIZE = 8
    """H: the terminal's rows (2) and columns (2)."""
    EXIT = 9
    """G: status as wait(2) has it (4). The last frame of a command."""
    RESULT = 10
    """G: an error's number, 0 for none (4). The last frame of what couldn't start, or has failed; or the answer."""
    SET_TIME = 11
    """H: seconds (8) and nanoseconds (8) since 1970. Answer: RESULT."""
    RESEED = 12
    """H: random bytes, at most 512, for the guest's random number generator. Answer: RESULT."""


class Stream(IntEnum):
    """A command's streams, by the numbers of their descriptors."""

    IN = 0
    OUT = 1
    ERR = 2


EXEC_TTY: Final = 1
"""Flag of EXEC: the command gets a terminal, and its errors go where its output goes."""
