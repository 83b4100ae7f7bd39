"""Interface specifications, as xm and xl write them: ``KEY=VALUE`` joined with commas; nothing means defaults.

mac=00:16:3e:01:02:03,bridge=br0         on a bridge of the host
rate=10MB/s,vifname=web0                 limited, with a name of its own on the host
type=ioemu,model=e1000                   an emulated card, for HVM domains
forward=2222:22+udp:5353:53              pyxen's own: ports of the host that lead to the guest
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from pyxen.config.decode import explain
from pyxen.config.model import INTERFACE_PATTERN, MAC_PATTERN, Forward, Vif
from pyxen.config.sizes import parse_rate
from pyxen.config.words import Warn, refuse, shown, unknown
from pyxen.errors import ConfigError

_HINT = "write KEY=VALUE words joined with commas: 'mac=00:16:3e:01:02:03,bridge=br0' or 'forward=2222:22'"

DEFAULT_EMULATED = "rtl8139"
"""The card of ``type=ioemu`` without a model, as in Xen."""

_MAC = re.compile(MAC_PATTERN)
_INTERFACE = re.compile(INTERFACE_PATTERN)
_MODEL = re.compile(r"[A-Za-z0-9-]{1,32}", re.ASCII)
_FORWARD = re.compile(
    r"(?:(?P<protocol>tcp|udp):)?(?:(?P<address>[0-9.]{7,15}):)?(?P<host>[0-9]{1,5}):(?P<guest>[0-9]{1,5})", re.ASCII
)
_LAST_DEVID = 255
_PARAVIRTUAL = ("vif", "netfront", "pv", "virtio", "virtio-net", "virtio-net-pci")
_NO_EFFECT = ("ip", "script", "accel", "policy", "label", "gatewaydev", "netdev", "mtu", "trusted", "id")
_KEYS = ["mac", "bridge", "vifname", "rate", "model", "type", "forward", "devid", "backend", *_NO_EFFECT]


def parse_vif(text: str, *, warn: Warn | None = None) -> Vif:
    """The Vif that ``text`` describes; ``warn`` is told of words without effect. Raises ConfigError."""
    fields: dict[str, Any] = {}
    emulated = False
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = word.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise refuse("vif", text, f"{shown(word)} should be a pair, separated by an equals sign", _HINT)
        if key not in _KEYS:
            raise refuse("vif", text, unknown("option", key, _KEYS), _HINT)
        if key in _NO_EFFECT:
            if warn and value:
                warn(f"`{key}` of a vif has no effect in pyxen")
        elif key == "type":
            emulated = _emulated(text, value)
        elif key == "backend":
            if value not in ("", "0", "Domain-0"):
                raise refuse("vif", text, "back ends in another domain are not supported", _HINT)
        elif value:
            try:
                parsed = _READERS[key](value)
            except ConfigError as error:
                raise refuse("vif", text, error.message, error.hint or _HINT) from None
            fields[key] = fields.get(key, ()) + parsed if key == "forward" else parsed
    if emulated and fields.get("model") is None:
        fields["model"] = DEFAULT_EMULATED
    try:
        return msgspec.convert(fields, Vif)
    except msgspec.ValidationError as error:
        raise refuse("vif", text, explain(error, "vif").message, _HINT) from None


def parse_forwards(text: str) -> tuple[Forward, ...]:
    """Port forwards ``[tcp:|udp:][ADDRESS:]HOST:GUEST``, several joined with ``+``. Raises ConfigError."""
    return tuple(_forward(part.strip()) for part in text.split("+"))


def _forward(text: str) -> Forward:
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{shown(text)} is no port forward",
            hint="write [tcp:|udp:][ADDRESS:]HOST:GUEST: forward=2222:22 or forward=udp:5353:53",
        )
    host, guest = int(match["host"]), int(match["guest"])
    if not (1 <= host <= 65535 and 1 <= guest <= 65535):
        raise ConfigError(f"{shown(text)} names a port outside 1 to 65535")
    return Forward(host=host, guest=guest, protocol=match["protocol"] or "tcp", address=match["address"] or "127.0.0.1")


def _emulated(text: str, value: str) -> bool:
    if value in _PARAVIRTUAL or not value:
        return False
    if value == "ioemu":
        return True
    raise refuse("vif", text, f"the type {shown(value)} is neither vif nor ioemu", _HINT)


def _mac(value: str) -> str:
    mac = value.lower().replace("-", ":")
    if not _MAC.search(mac):
        raise ConfigError(f"{shown(value)} is no MAC address")
    return mac


def _interface(value: str) -> str:
    if not _INTERFACE.search(value):
        raise ConfigError(f"{shown(value)} is no name of an interface: at most 15 letters, digits or any of _ . -")
    return value


def _model(value: str) -> str | None:
    if not _MODEL.fullmatch(value):
        raise ConfigError(f"{shown(value)} is no network card's name")
    return None if value in _PARAVIRTUAL else value


def _devid(value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) <= _LAST_DEVID):
        raise ConfigError(f"{shown(value)} is no number of an interface: 0 to {_LAST_DEVID}")
    return int(value)


_READERS: dict[str, Callable[[str], Any]] = {
    "mac": _mac,
    "bridge": _interface,
    "vifname": _interface,
    "rate": parse_rate,
    "model": _model,
    "forward": parse_forwards,
    "devid": _devid,
}
