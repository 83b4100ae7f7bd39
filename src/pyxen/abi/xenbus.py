"""The states through which a front end and a back end go (xen/include/public/io/xenbus.h)."""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """The value of ``state`` in each half of a device."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
