"""Words for numbers: Xen's names for hypercalls, errors, and for what stands in their arguments."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from pyxen.abi import errno, event_channel, grant_table, hvm, memory, sched, vcpu
from pyxen.abi import hypercall as nr
from pyxen.abi.cpuid import HYPERCALL_MSR
from pyxen.abi.shared_info import DOMID_INVALID, DOMID_IO, DOMID_SELF, DOMID_XEN
from pyxen.hypervisor.builder import acpi, hypercall_sites


def _constants(module: ModuleType, prefix: str, *, without: tuple[str, ...] = ()) -> dict[int, str]:
    """A module's numbers whose names begin with ``prefix``, by value, in small letters without it."""
    return {
        value: name.removeprefix(prefix).lower()
        for name, value in vars(module).items()
        if name.startswith(prefix) and isinstance(value, int) and name not in without
    }


_OPERATIONS: Final = ("CONSOLE_WRITE", "CONSOLE_READ", "VM_ASSIST_")
HYPERCALLS: Final = {
    value: name.lower()
    for name, value in vars(nr).items()
    if name.isupper() and isinstance(value, int) and not name.startswith(_OPERATIONS)
} | {
    0: "set_trap_table", 1: "mmu_update", 2: "set_gdt", 3: "stack_switch", 4: "set_callbacks", 5: "fpu_taskswitch",
    6: "sched_op_compat", 8: "set_debugreg", 9: "get_debugreg", 10: "update_descriptor", 14: "update_va_mapping",
    19: "physdev_op_compat", 22: "update_va_mapping_otherdomain", 23: "iret", 25: "set_segment_base", 26: "mmuext_op",
    28: "nmi_op", 30: "callback_op", 31: "xenoprof_op", 37: "kexec_op", 38: "tmem_op",
}  # fmt: skip
"""All of xen.h, those of other kinds of guest too."""

ERRORS: Final = {value: name for name, value in vars(errno).items() if name.startswith("E") and isinstance(value, int)}

GRANT_STATUS: Final = {
    getattr(grant_table, name): name.lower()
    for name in (
        "OKAY",
        "GENERAL_ERROR",
        "BAD_DOMAIN",
        "BAD_GNTREF",
        "BAD_HANDLE",
        "BAD_VIRT_ADDR",
        "PERMISSION_DENIED",
        "BAD_PAGE",
        "BAD_COPY_ARG",
        "EAGAIN",
    )
}

_DOMIDS: Final = {DOMID_SELF: "self", DOMID_IO: "io", DOMID_XEN: "xen", DOMID_INVALID: "invalid"}
REASONS: Final = _constants(sched, "SHUTDOWN_", without=("SHUTDOWN_MAX",))
_VIRQS: Final = _constants(event_channel, "VIRQ_")

FIELDS: Final[dict[str, dict[int, str]]] = {
    **dict.fromkeys(
        ("domid", "dom", "remote_dom", "source_domid", "dest_domid", "foreign_domid", "domain_id"), _DOMIDS
    ),
    "virq": _VIRQS,
    "reason": REASONS,
    "space": _constants(memory, "SPACE_"),
    "state": _constants(vcpu, "RUNSTATE_", without=("RUNSTATE_UPDATE",)),
}
"""By a field's name: its values' names."""

PARAMS: Final = _constants(hvm, "PARAM_")
EVENT_STATUS: Final = _constants(event_channel, "STATUS_")
EVENT_STATES: Final = {1: "unbound", 2: "interdomain", 4: "virq", 5: "ipi"}

HEXADECIMAL: Final = frozenset(
    {
        "address", "array_gfn", "buffer", "control_gfn", "dest", "dev_bus_addr", "errs", "extent_start", "flags",
        "frame_list", "gpa", "gpfn", "gpfns", "host_addr", "idx", "idxs", "mem_flags", "mfn", "pfn", "source",
        "submap", "value", "vector",
    }
)  # fmt: skip
"""Fields that are addresses, frame numbers or bits."""

PORTS: Final = {
    0x20: "pic1", 0x21: "pic1", 0xA0: "pic2", 0xA1: "pic2", 0x40: "pit", 0x41: "pit", 0x42: "pit", 0x43: "pit",
    0x60: "keyboard", 0x61: "port-b", 0x64: "keyboard", 0x70: "rtc", 0x71: "rtc", 0x80: "delay", 0x92: "port-a",
    0xCF8: "pci-address", 0xCFC: "pci-data", 0xCFD: "pci-data", 0xCFE: "pci-data", 0xCFF: "pci-data",
    **dict.fromkeys(range(0x3F8, 0x400), "serial1"), **dict.fromkeys(range(0x2F8, 0x300), "serial2"),
    acpi.SLEEP_CONTROL_PORT: "sleep-control", acpi.SLEEP_STATUS_PORT: "sleep-status",
    hypercall_sites.PORT: "hypercall",
}  # fmt: skip
"""What a PC has at an I/O port. Here only the last lines' are anything."""

MSRS: Final = {
    0x10: "TSC", 0x1B: "APIC_BASE", 0x3A: "FEATURE_CONTROL", 0x48: "SPEC_CTRL", 0x49: "PRED_CMD", 0x79: "UCODE_LOAD",
    0x8B: "UCODE_REV", 0xCE: "PLATFORM_INFO", 0xFE: "MTRR_CAP", 0x10A: "ARCH_CAPABILITIES", 0x140: "MISC_FEATURES",
    0x17A: "MCG_STATUS", 0x179: "MCG_CAP", 0x1A0: "MISC_ENABLE", 0x1D9: "DEBUG_CTL", 0x277: "PAT",
    0x2FF: "MTRR_DEF_TYPE", 0x606: "RAPL_POWER_UNIT", 0xC0000080: "EFER", 0xC0010010: "SYSCFG", 0xC0010015: "HWCR",
    0xC0010055: "INT_PENDING", 0xC0010064: "PSTATE", 0xC0011020: "LS_CFG", 0xC0011029: "DE_CFG",
    HYPERCALL_MSR: "XEN_HYPERCALL",
}  # fmt: skip


def errno_name(result: int) -> str | None:
    """``ENOSYS`` of -38; None for a result that is no error."""
    return ERRORS.get(-result, f"E{-result}") if -4096 < result < 0 else None
