"""The network device's rings (xen/include/public/io/netif.h). The layouts are the same for 32-bit guests."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

TX_REQUEST = struct.Struct("<IHHHH")
"""gref, offset, flags, id, size. The first request of a packet has the size of the whole packet."""
TX_RESPONSE = struct.Struct("<Hh")
"""id, status."""
RX_REQUEST = struct.Struct("<HxxI")
"""id, gref."""
RX_RESPONSE = struct.Struct("<HHHh")
"""id, offset, flags, status: the bytes in this slot, or an error."""
EXTRA = struct.Struct("<BB6x")
"""type, flags; what follows depends on the type."""
EXTRA_GSO = struct.Struct("<BBHBxH")
"""type, flags, segment size, GSO type, features."""

TX_ENTRY_SIZE = 12
RX_ENTRY_SIZE = 8

TX_SLOTS_MAX = 18
"""Requests of one packet that a back end has to take."""
PACKET_MAX = 65535


class TxFlag(IntFlag):
    CSUM_BLANK = 1
    DATA_VALIDATED = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


class RxFlag(IntFlag):
    DATA_VALIDATED = 1
    CSUM_BLANK = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


class Status(IntEnum):
    """Of a response; a received slot's length where it is positive."""

    OKAY = 0
    ERROR = -1
    DROPPED = -2
    NULL = 1
    """The answer to a slot that held extra information."""


class ExtraType(IntEnum):
    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4
    XDP = 5


EXTRA_MORE = 1
"""Flag of an extra slot: another one follows."""


class GsoType(IntEnum):
    NONE = 0
    TCPV4 = 1
    TCPV6 = 2
