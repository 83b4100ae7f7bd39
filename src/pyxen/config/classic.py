"""Keys of xm's and xl's files that pyxen knows by another name, does without, or refuses."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "builder": "`type`: `hvm` is hvm, `linux` and `generic` are pvh",
    "on_shutdown": "`on_poweroff`",
    "restart": "`on_poweroff`, `on_reboot` and `on_crash`: `always`, `onreboot` or `never`",
    "bios": "`firmware`: `seabios` and `rombios` are bios, `ovmf` is uefi",
    "stdvga": "`vga`",
    "nographic": "`vga`: 1 is none",
    "cap": "`cpu_cap`",
    "vfb": "`vnc`, `vnclisten` and `vncdisplay`",
    "ip": "the kernel's `ip=`, put before `extra`",
    "netmask": "the kernel's `ip=`",
    "gateway": "the kernel's `ip=`",
    "hostname": "the kernel's `ip=`",
    "interface": "the kernel's `ip=`",
    "dhcp": "the kernel's `ip=`",
    "nfs_server": "the kernel's `ip=` and `nfsroot=`",
    "nfs_root": "the kernel's `nfsroot=`",
    "profile": "`windows` is `type=hvm`, `hdtype=ahci`, `firmware=uefi`, `tpm`, `viridian`, `localtime`, `vnc`, a USB "
    "tablet, and an empty CD-ROM drive `hdd` for drivers, unless the file says otherwise",
}
"""Key → what is set instead, in words."""

# Without a reason of its own, a key is listed by what it is about.
_WITHOUT_EFFECT = {
    "scheduling": "cpu vcpu_avail period slice latency extratime",
    "memory": "shadow_memory superpages vnuma claim mmio_hole",
    "life cycle": "on_watchdog on_soft_reset on_xend_start on_xend_stop target nomigrate xend_suspend_evtchn_compat",
    "boot loaders and firmware files": (
        "bootloader bootloader_args bootloader_restrict bootloader_user bootargs bootentry loader pvshim pvshim_path"
        " pvshim_cmdline pvshim_extra firmware_override bios_path_override acpi_firmware smbios_firmware smbios"
        " ms_vm_genid"
    ),
    "security and limits": (
        "access_control seclabel init_seclabel max_grant_frames max_maptrack_frames max_grant_version"
        " max_event_channels driver_domain dm_restrict device_model_user xenstore_feature_mask xenstore_quota"
        " blkif netif s3_integrity"
    ),
    "CPU features": (
        "features cpuid cpuid_check pae acpi acpi_s3 acpi_s4 acpi_laptop_slate apic nx hap oos hpet altp2m altp2mhvm"
        " altp2m_count nestedhvm xen_platform_pci xen_platform_pci_bar_uc xen_extended_power_mgmt hvm_pirq"
        " vpmu vmtrace_buf_kb mca_caps msr_relaxed isa guest_os_type e820_host vhpt machine_address_size"
        " suppress_spurious_page_faults tee passthrough"
    ),
    "clocks": "tsc_mode rtc_timeoffset vpt_align timer_mode",
    "other devices": (
        "vif2 nics vtpm channel rdm rdm_mem_boundary usbctrl usbversion pci_permissive pci_msitranslate"
        " pci_seize pci_power_mgmt gfx_passthru dtdev device_tree ioports iomem irq irqs vdispl vsnd"
        " vkb vkb_device virtio vscsi vusb pvcalls soundhw vendor_device fda fdb cdrom parallel monitor monitor_path"
    ),
    "screens": (
        "videoram vncunused vncpasswd vncconsole vncviewer sdl opengl display xauthority keymap spice spicehost"
        " spiceport spicetls_port spicedisable_ticketing spicepasswd spiceagent_mouse spicevdagent"
        " spice_clipboard_sharing spiceusbredirection spice_image_compression spice_streaming_video"
    ),
    "device models": (
        "device_model device_model_version device_model_override device_model_args device_model_args_pv"
        " device_model_args_hvm device_model_stubdomain_override device_model_stubdomain_seclabel stubdomain_kernel"
        " stubdomain_cmdline stubdomain_ramdisk stubdomain_memory"
    ),
    "ARM": "gic_version vuart sve llc_colors nr_spis trap_unmapped_accesses arm_sci",
}

WITHOUT_EFFECT: dict[str, str] = {key: about for about, keys in _WITHOUT_EFFECT.items() for key in keys.split()}
"""Key → what it is about. Files with these keys load; a warning says that they do nothing."""

REASONS: dict[str, str] = {
    "bootloader": "set `kernel` and `ramdisk`, or `image`",
    "pci_permissive": "VFIO checks what a guest writes to a device's configuration, and can't be told not to",
    "pci_msitranslate": "VFIO delivers INTx itself",
    "pci_seize": "write it with the device: '0000:03:00.0,seize=1'",
    "usbctrl": "`usb` is one controller, for USB 1 to 3, with 15 ports",
    "vncpasswd": "who reaches VNC's port may use it; keep `vnclisten` on 127.0.0.1",
    "device_model": "QEMU is found by xend itself",
    "loader": "the firmware is chosen by `firmware`",
    "nics": "write one entry in `vif` for each interface",
    "cpu": "use `cpus`",
    "superpages": "use `hugepages`",
    "vcpu_avail": "use `vcpus` and `maxvcpus`",
    "cdrom": "write it in `disk`: 'file:/cd.iso,hdc:cdrom,r'",
}
"""Why a key has no effect, or what to write instead, where that helps."""

_ON_BY_NATURE = frozenset(("pae", "acpi", "apic", "nx", "hap", "oos", "vncunused"))
_NOTHING = frozenset(("", "0", "none", "no", "default", "Pool-0", "ignore"))


def asks_nothing(key: str, value: object) -> bool:
    """Whether ``key = value`` only says what is so anyway: ``acpi = 1``, ``sdl = 0``, ``parallel = "none"``."""
    empty = not value or (isinstance(value, str) and value in _NOTHING)
    return empty != (key in _ON_BY_NATURE)
