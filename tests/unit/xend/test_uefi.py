"""Variables of UEFI that are kept for a domain, and the keys in them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pyxen.config.model import DomainConfig, DomainType, Firmware
from pyxen.errors import Conflict
from pyxen.paths import Roots
from pyxen.xend.uefi import has_platform_key, own_variables

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
OTHER = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")


def variable(name: str, data: bytes, vendor: uuid.UUID = GLOBAL, state: int = 0x3F) -> bytes:
    """One as EDK II lays it out (AUTHENTICATED_VARIABLE_HEADER)."""
    spelled = name.encode("utf-16-le") + b"\0\0"
    header = b"\xaa\x55" + bytes([state, 0]) + (0x27).to_bytes(4, "little") + bytes(8 + 16 + 4)
    sizes = len(spelled).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return header + sizes + vendor.bytes_le + spelled + data


@pytest.mark.parametrize(
    ("stored", "there"),
    [
        (variable("PK", b"key"), True),
        (variable("Boot0000", b"x") + b"\xff" + variable("PK", b"\n" * 300), True),
        (variable("PK", b""), False),
        (variable("PK", b"key", state=0x3C), False),
        (variable("PK", b"key", OTHER), False),
        (variable("KEK", b"key") + variable("dbx", b"PK"), False),
        (b"\xff" * 1000, False),
    ],
    ids=["one", "behind others", "empty", "deleted", "another vendor's", "other names", "nothing"],
)
def test_a_platform_key_is_found(stored: bytes, there: bool) -> None:
    assert has_platform_key(bytes(64) + stored + b"\xff" * 64) is there


def test_secure_boot_is_not_left_off_for_variables_of_before(roots: Roots) -> None:
    config = DomainConfig(name="box", type=DomainType.HVM, firmware=Firmware.UEFI, secure_boot=True)
    folder = roots.state / "nvram"
    folder.mkdir(parents=True)
    (folder / "box.fd").write_bytes(variable("Boot0000", b"x"))
    made: list[Path] = []
    with pytest.raises(Conflict, match="have no keys") as refused:
        own_variables(config, roots, made)
    assert "Remove it" in (refused.value.hint or "")
    (folder / "box.fd").write_bytes(variable("PK", b"key"))
    assert own_variables(config, roots, made) == str(folder / "box.fd")
    assert made == []
