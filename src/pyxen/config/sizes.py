"""Amounts with units: memory in MiB, network rates in bytes per second."""

from __future__ import annotations

import re

from pyxen.config.words import shown
from pyxen.errors import ConfigError

_MEMORY = re.compile(r"\s*([0-9]{1,12})(?:\.([0-9]{1,6}))?\s*(?:([kmgt])(?:i?b)?)?\s*", re.IGNORECASE | re.ASCII)
_KIB = {"k": 1, "m": 1024, "g": 1024**2, "t": 1024**3}

_RATE = re.compile(r"\s*([0-9]{1,13})([GMK]?)([Bb])/s(?:@[0-9]{1,9}[mu]?s)?\s*", re.ASCII)
_MULTIPLE = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}


def parse_mib(text: str, *, unit: str = "m") -> int:
    """MiB from ``512``, ``512M``, ``1.5G``, ``1048576k`` or ``1T``; a bare number counts in ``unit``.

    Raises ConfigError for anything else, and for what is no whole number of MiB.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ConfigError(f"{shown(text)} is not an amount of memory", hint="write MiB, or a unit: 512, 512M, 2G")
    whole, fraction, letter = match.groups()
    digits = fraction or ""
    kib, rest = divmod(int(whole + digits) * _KIB[(letter or unit).lower()], int("1" + "0" * len(digits)))
    mib, odd = divmod(kib, 1024)
    if odd or rest:
        raise ConfigError(f"{shown(text)} is not a whole number of MiB")
    return mib


def parse_rate(text: str) -> int:
    """Bytes per second from Xen's ``N[K|M|G](B|b)/s[@INTERVAL]``: ``10MB/s``, ``80Mb/s@20ms``.

    ``B`` are bytes and ``b`` bits; K, M and G are powers of 1000, as in xl. The interval, over which Xen's netback
    counts, is read and left aside. Raises ConfigError for anything else.
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{shown(text)} is not a rate", hint="write N, then K, M or G, then B/s or b/s: rate=10MB/s")
    number, multiple, unit = match.groups()
    rate = int(number) * _MULTIPLE[multiple] // (1 if unit == "B" else 8)
    if rate < 1:
        raise ConfigError(f"the rate {shown(text)} lets nothing through", hint="leave rate out for no limit")
    return rate
