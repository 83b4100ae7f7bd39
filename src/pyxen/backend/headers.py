"""Ethernet, IP, TCP and UDP headers: just enough to say where a checksum lies, and to complete one."""

from __future__ import annotations

from dataclasses import dataclass

_VLAN = (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_HOP_BY_HOP, _ROUTING, _DESTINATION = 0, 43, 60
_EXTENSIONS_MAX = 8
HEADERS_MAX = 256
"""No packet that can be made sense of has longer headers."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the transport's header starts, where in it the checksum is, and how long all headers are."""

    start: int
    checksum: int
    headers: int
    ip: int
    """Where the IP header starts."""
    protocol: int


def find(data: bytes | bytearray | memoryview) -> Place | None:
    """The TCP or UDP checksum of an Ethernet frame; None if it has none, or is too short to tell."""
    at = 12
    kind = int.from_bytes(data[at : at + 2], "big")
    for _ in range(2):
        if kind not in _VLAN:
            break
        at += 4
        kind = int.from_bytes(data[at : at + 2], "big")
    ip = at + 2
    if kind == _IPV4 and len(data) >= ip + 20:
        return _transport(data, ip, ip + (data[ip] & 15) * 4, data[ip + 9]) if data[ip] & 15 >= 5 else None
    if kind == _IPV6 and len(data) >= ip + 40:
        return _ipv6(data, ip)
    return None


def complete(frame: bytearray, place: Place) -> None:
    """Put the whole checksum where there was none, or only the pseudo-header's."""
    at = place.start + place.checksum
    frame[at : at + 2] = b"\0\0"
    segment = frame[place.start : _end(frame, place)]
    pseudo = _addresses(frame, place.ip) + len(segment).to_bytes(4, "big") + bytes((0, 0, 0, place.protocol))
    value = checksum(pseudo + segment)
    # In UDP, zero says that there is no checksum.
    frame[at : at + 2] = (value or (0xFFFF if place.protocol == _UDP else 0)).to_bytes(2, "big")


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = bytes(data) + b"\0" * (len(data) & 1)
    # 2^16 leaves 1 modulo 2^16-1: the sum of all words with its carries is one remainder.
    total = int.from_bytes(padded, "big")
    return ~(total % 0xFFFF or (0xFFFF if total else 0)) & 0xFFFF


def _transport(data: bytes | bytearray | memoryview, ip: int, start: int, protocol: int) -> Place | None:
    if protocol == _TCP and len(data) >= start + 20:
        return Place(start, 16, start + (data[start + 12] >> 4) * 4, ip, protocol)
    if protocol == _UDP and len(data) >= start + 8:
        return Place(start, 6, start + 8, ip, protocol)
    return None


def _ipv6(data: bytes | bytearray | memoryview, ip: int) -> Place | None:
    protocol, start = data[ip + 6], ip + 40
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            break
        if len(data) < start + 2:
            return None
        protocol, start = data[start], start + (data[start + 1] + 1) * 8
    return _transport(data, ip, start, protocol)


def _addresses(data: bytearray, ip: int) -> bytes:
    return bytes(data[ip + 12 : ip + 20]) if data[ip] >> 4 == 4 else bytes(data[ip + 8 : ip + 40])


def _end(data: bytearray, place: Place) -> int:
    """Where the packet ends: a short frame is padded."""
    ip = place.ip
    if data[ip] >> 4 == 4:
        end = ip + int.from_bytes(data[ip + 2 : ip + 4], "big")
    else:
        end = ip + 40 + int.from_bytes(data[ip + 4 : ip + 6], "big")
    return end if place.headers <= end <= len(data) else len(data)
