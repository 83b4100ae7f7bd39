"""The xenstore protocol: message header, operations, error names, limits, and the ring page that carries them.

From xen/include/public/io/xs_wire.h and docs/misc/xenstore.txt, xenstore-ring.txt.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("<IIII")
"""type, req_id, tx_id, length of the payload."""

PAYLOAD_MAX = 4096
ABSOLUTE_PATH_MAX = 3072
RELATIVE_PATH_MAX = 2048


class Op(IntEnum):
    """Message types. 20 was RESTRICT, which is gone."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class Error(IntEnum):
    """The errors that have a name on the wire; the values are Xen's errno values."""

    EPERM = 1
    ENOENT = 2
    EIO = 5
    E2BIG = 7
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EBUSY = 16
    EEXIST = 17
    EISDIR = 21
    EINVAL = 22
    ENOSPC = 28
    EROFS = 30
    ENOSYS = 38
    ENOTEMPTY = 39
    EISCONN = 106


RING_SIZE = 1024
REQUESTS = 0
RESPONSES = 1024
REQ_CONS = 2048
REQ_PROD = 2052
RSP_CONS = 2056
RSP_PROD = 2060
SERVER_FEATURES = 2064
CONNECTION = 2068
ERROR = 2072
EVTCHN_PORT = 2076

FEATURE_RECONNECTION = 1
FEATURE_ERROR = 2
FEATURE_WATCH_DEPTH = 4

CONNECTED = 0
RECONNECT = 1


class RingError(IntEnum):
    """What the server puts into ``ERROR``."""

    NONE = 0
    COMM = 1
    RINGIDX = 2
    PROTO = 3
