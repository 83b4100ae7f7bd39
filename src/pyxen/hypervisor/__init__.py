"""The hypervisor: one process for each PVH domain, Xen's ABI on /dev/kvm."""
