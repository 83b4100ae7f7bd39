"""A domain's own copy of the UEFI variables: boot entries, and the keys that secure boot goes by."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from pyxen.config.model import DomainConfig, DomainType, Firmware
from pyxen.errors import Conflict, NotFound
from pyxen.paths import Roots
from pyxen.xend.belongings import variables

OVMF_VARS = ("/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd", "/usr/share/OVMF/OVMF_VARS.fd")

OVMF_SECURE_VARS = ("/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/usr/share/edk2/x64/OVMF_VARS.secboot.4m.fd")
"""With Microsoft's keys enrolled, and secure boot switched on."""

_GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_PLATFORM_KEY = re.compile(
    # AUTHENTICATED_VARIABLE_HEADER of EDK II: its mark, a state (written and not deleted since) and 33 bytes of
    # reserved ones, attributes, count, time and key's number; the sizes of name and data; the vendor, the name.
    rb"\xaa\x55\x3f.{33}\x06\0\0\0(?!\0\0\0\0).{4}" + re.escape(_GLOBAL) + "PK\0".encode("utf-16-le"),
    re.DOTALL,
)


def own_variables(config: DomainConfig, roots: Roots, made: list[Path]) -> str | None:
    """The file with a domain's UEFI variables, made from the firmware's own unless it is there; ``made`` tells.

    Raises NotFound without the firmware, and Conflict if secure boot is asked for with variables that have no keys: it
    would check nothing.
    """
    if config.type is not DomainType.HVM or config.firmware is not Firmware.UEFI:
        return None
    path = variables(config.name, roots)
    if not path.exists():
        known = OVMF_SECURE_VARS if config.secure_boot else OVMF_VARS
        template = next((each for each in known if Path(each).exists()), None)
        if template is None:
            raise NotFound("the UEFI firmware is not installed", hint="Install it: apt-get install ovmf")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(template, path)
        made.append(path)
    elif config.secure_boot and not has_platform_key(path.read_bytes()):
        raise Conflict(
            f"secure_boot = 1, but the UEFI variables that '{config.name}' has from before have no keys: {path}",
            hint="Remove it to start with Microsoft's keys (its boot entries go), or leave secure_boot out.",
        )
    return str(path)


def has_platform_key(store: bytes) -> bool:
    """Whether these variables, as OVMF keeps them, have a platform key (PK); without one, secure boot is off."""
    return _PLATFORM_KEY.search(store) is not None
