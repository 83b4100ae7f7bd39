"""USB devices for a domain: what they are, and options, joined with commas.

hostbus=1,hostaddr=3          a device of the host, where it is plugged in (xl); host:1.3 (xm)
host:046d:c077                the same by vendor and product
redir=192.0.2.7:4000          a device elsewhere, by usbredir; redir=unix:PATH
disk:/srv/stick.img           a disk's image as a USB stick; what is behind disk: is its name to the end
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from pyxen.config.decode import explain
from pyxen.config.model import UsbDevice
from pyxen.config.words import absolute, refuse, shown, unknown

_HINT = "write 'hostbus=1,hostaddr=3', 'host:046d:c077', 'redir=HOST:PORT' or 'disk:/srv/stick.img'"
_PLACE = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)
_IDS = re.compile(r"(?:0x)?([0-9a-f]{1,4}):(?:0x)?([0-9a-f]{1,4})", re.ASCII)
_NUMBERS = ("hostbus", "hostaddr", "devid")
_IGNORED = {"type": ("hostdev", "pv", ""), "controller": ("0", ""), "port": ("",)}
"""xl's words, and what they may be: there is one kind of device, and one controller, whose ports xend gives out."""
_KEYS = [*_NUMBERS, "redir", "format", "readonly", *_IGNORED]


def parse_usb(text: str, *, base: Path | None = None) -> UsbDevice:
    """The UsbDevice that ``text`` describes; a relative path is below ``base`` (the current folder).

    Raises ConfigError.
    """
    fields: dict[str, Any] = {}
    words, path = _split(text)
    if path is not None:
        fields |= {"type": "disk", "target": absolute(path, base) if path else path}
    for word in words:
        key, equals, value = word.partition("=")
        key, value = key.strip(), value.strip()
        if word.lower().startswith("host:"):
            fields |= _host(text, word[5:])
        elif not equals:
            raise refuse("usbdev", text, f"{shown(word)} should be a pair, separated by an equals sign", _HINT)
        elif key not in _KEYS:
            raise refuse("usbdev", text, unknown("option", key, _KEYS), _HINT)
        elif key in _NUMBERS:
            if not (value.isascii() and value.isdigit() and len(value) < 6):
                raise refuse("usbdev", text, f"{key} must be a number", _HINT)
            fields[key] = int(value)
            fields |= {} if key == "devid" else {"type": "host"}
        elif key == "redir":
            fields |= {"type": "redir", "peer": value}
        elif key == "format":
            fields["format"] = value
        elif key == "readonly":
            if value not in ("0", "1"):
                raise refuse("usbdev", text, "readonly is 0 or 1", _HINT)
            fields["readonly"] = value == "1"
        elif value not in _IGNORED[key]:
            raise refuse("usbdev", text, f"{key}={value} has no meaning here", "leave it out")
    if "type" not in fields:
        raise refuse("usbdev", text, "it does not say which device", _HINT)
    try:
        return msgspec.convert(fields, UsbDevice)
    except msgspec.ValidationError as error:
        raise refuse("usbdev", text, explain(error, "usbdev").message, _HINT) from None


def _split(text: str) -> tuple[list[str], str | None]:
    """The words before ``disk:`` or ``target=``, and the path behind it."""
    found = re.search(r"(?:^|,)\s*(?:disk:|target=)", text)
    before, path = (text, None) if found is None else (text[: found.start()], text[found.end() :])
    return [word.strip() for word in before.split(",") if word.strip()], path


def _host(text: str, what: str) -> dict[str, object]:
    if place := _PLACE.fullmatch(what):
        return {"type": "host", "hostbus": int(place[1]), "hostaddr": int(place[2])}
    if ids := _IDS.fullmatch(what.lower()):
        return {"type": "host", "vendor": ids[1].zfill(4), "product": ids[2].zfill(4)}
    raise refuse("usbdev", text, f"{shown(what)} is neither BUS.ADDRESS nor VENDOR:PRODUCT", _HINT)
