"""QEMU as the monitor of a domain."""
