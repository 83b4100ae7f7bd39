"""The host's PCI devices for a domain, as xm and xl write them: an address, and options after commas.

0000:03:00.0              domain, bus, slot, function; without a domain it is 0000
03:00.0@05                in the guest's slot 5 (hexadecimal)
03:00.0,seize=1           taken from its driver, if it hasn't been made assignable before
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pyxen.config.decode import explain
from pyxen.config.model import PciDevice
from pyxen.config.words import refuse, shown, unknown

_HINT = "write '0000:03:00.0', as xm pci-list-assignable-devices shows it"
_ADDRESS = re.compile(
    r"(?:(?P<domain>[0-9a-f]{1,8}):)?(?P<bus>[0-9a-f]{1,2}):(?P<slot>[01]?[0-9a-f])\.(?P<function>[0-7])", re.ASCII
)
_SLOT = re.compile(r"(?:0x)?([01]?[0-9a-f])", re.ASCII)
_REFUSED = {
    "permissive": "VFIO checks what a guest writes to a device's configuration, and can't be told not to",
    "msitranslate": "VFIO delivers INTx itself, nothing needs to be translated",
    "power_mgmt": "VFIO keeps a device's power states from the guest",
    "rdm_policy": "there are no reserved regions in a guest's memory: the kernel gives no such device away",
}
"""Options of Xen's that ask for something when they are set, and why there is no such thing here."""
_NOTHING = ("", "0", "relaxed")
_KEYS = ["bdf", "vslot", "seize", *_REFUSED]


def parse_pci(text: str) -> PciDevice:
    """The PciDevice that ``text`` describes. Raises ConfigError."""
    fields: dict[str, Any] = {}
    for place, word in enumerate(part.strip() for part in text.split(",")):
        key, equals, value = word.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            if place == 0:
                value, at, slot = word.partition("@")
                fields["address"] = _address(text, value)
                if at:
                    fields["vslot"] = _slot(text, slot)
            elif place == 1 and _SLOT.fullmatch(word.lower()):  # xl's second word
                fields["vslot"] = _slot(text, word)
            elif word:
                raise refuse("pci", text, f"{shown(word)} should be a pair, separated by an equals sign", _HINT)
        elif key not in _KEYS:
            raise refuse("pci", text, unknown("option", key, _KEYS), _HINT)
        elif key == "bdf":
            fields["address"] = _address(text, value)
        elif key == "vslot":
            fields["vslot"] = _slot(text, value)
        elif key == "seize":
            if value not in ("0", "1"):
                raise refuse("pci", text, "seize is 0 or 1", _HINT)
            fields["seize"] = value == "1"
        elif value not in _NOTHING:
            raise refuse("pci", text, f"there is no {key}: {_REFUSED[key]}", f"leave {key} out")
    try:
        return msgspec.convert(fields, PciDevice)
    except msgspec.ValidationError as error:
        raise refuse("pci", text, explain(error, "pci").message, _HINT) from None


def full_address(text: str) -> str:
    """``3:0.0`` as the kernel writes it: ``0000:03:00.0``. Raises ConfigError."""
    return _address(text, text)


def _address(text: str, value: str) -> str:
    match = _ADDRESS.fullmatch(value.strip().lower())
    if match is None:
        raise refuse("pci", text, f"{shown(value)} is no PCI device's address", _HINT)
    domain, bus, slot = (int(match[part] or "0", 16) for part in ("domain", "bus", "slot"))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{match['function']}"


def _slot(text: str, value: str) -> int:
    match = _SLOT.fullmatch(value.strip().lower())
    if match is None or not int(match[1], 16):
        raise refuse("pci", text, f"{shown(value)} is no slot: 1 to 1f, in hexadecimal", _HINT)
    return int(match[1], 16)
