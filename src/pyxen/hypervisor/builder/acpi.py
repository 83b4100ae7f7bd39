"""The ACPI tables of a PVH domain: its VCPUs (MADT) and how to switch it off (FADT, and \\_S5 in the DSDT).

Layouts: ACPI specification 6.0, chapter 5. The hardware is of the "reduced" kind: nothing but the local APICs and two
ports, of which writing the first one puts the machine to sleep for ever.
"""

from __future__ import annotations

import struct
from typing import Final

from pyxen.hypervisor.builder import layout

SLEEP_CONTROL_PORT: Final = 0x604
SLEEP_STATUS_PORT: Final = 0x605
SLEEP_ENABLE: Final = 1 << 5
_S5_TYPE: Final = 5
SOFT_OFF: Final = _S5_TYPE << 2 | SLEEP_ENABLE
"""Written to the control port by a guest that switches itself off."""

_OEM: Final = b"pyxen\0"
_OEM_TABLE: Final = b"PVH\0\0\0\0\0"
_CREATOR: Final = b"PYXN"
_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_LOCAL_APIC: Final = 0xFEE00000
_LARGEST_XAPIC_ID: Final = 254
_ENABLED: Final = 1

_FADT_SIZE: Final = 268
_NO_LEGACY: Final = 1 << 2 | 1 << 5  # no VGA, no CMOS clock; neither 8042 nor legacy devices
_FADT_FLAGS: Final = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 20  # WBINVD works, no fixed buttons, reduced hardware

# Name (\_S5, Package (4) { 5, 5, 0, 0 }) in AML.
_AML_S5: Final = bytes.fromhex("08 5f53355f 12 08 04 0a05 0a05 00 00")


def tables(vcpus: int) -> tuple[int, bytes]:
    """The physical address of the RSDP, and the bytes to be put at layout.ACPI."""
    blob = bytearray()

    def place(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % 64))
        blob.extend(data)
        return layout.ACPI + len(blob) - len(data)

    dsdt = place(_table(b"DSDT", 2, _AML_S5))
    fadt = place(_fadt(dsdt))
    madt = place(_madt(vcpus))
    xsdt = place(_table(b"XSDT", 1, struct.pack("<QQ", fadt, madt)))
    rsdp = place(_rsdp(xsdt))
    if len(blob) > layout.ACPI_SIZE:
        raise ValueError(f"the tables of {vcpus} VCPUs are too large")
    return rsdp, bytes(blob)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = _HEADER.pack(signature, _HEADER.size + len(body), revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1)
    return _summed(bytearray(header + body), 9, len(header) + len(body))


def _summed(table: bytearray, place: int, length: int) -> bytes:
    """With the byte at ``place`` such that the first ``length`` bytes add up to 0."""
    table[place] = -sum(table[:length]) & 0xFF
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    size = 36
    table = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, size, xsdt, 0))
    _summed(table, 8, 20)
    return _summed(table, 32, size)


def _fadt(dsdt: int) -> bytes:
    """Revision 5. All addresses of fixed hardware are 0."""
    body = bytearray(_FADT_SIZE - _HEADER.size)

    def put(form: str, offset: int, *values: int) -> None:
        struct.pack_into("<" + form, body, offset - _HEADER.size, *values)

    put("I", 40, dsdt)
    put("HH", 96, 101, 1001)  # no C2 and C3
    put("H", 109, _NO_LEGACY)
    put("I", 112, _FADT_FLAGS)
    put("Q", 140, dsdt)
    # Generic addresses: I/O space, 8 bits wide, from bit 0 on, one byte at a time.
    put("BBBBQ", 244, 1, 8, 0, 1, SLEEP_CONTROL_PORT)
    put("BBBBQ", 256, 1, 8, 0, 1, SLEEP_STATUS_PORT)
    return _table(b"FACP", 5, bytes(body))


def _madt(vcpus: int) -> bytes:
    """One local APIC for each VCPU: processor id, Xen's VCPU id and APIC id are the same number."""
    body = bytearray(struct.pack("<II", _LOCAL_APIC, 0))
    for number in range(vcpus):
        if number <= _LARGEST_XAPIC_ID:
            body += struct.pack("<BBBBI", 0, 8, number, number, _ENABLED)
        else:
            body += struct.pack("<BBHIII", 9, 16, 0, number, _ENABLED, number)
    return _table(b"APIC", 4, bytes(body))
