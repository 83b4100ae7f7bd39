"""QEMU as a monitor."""

from pyxen.engine.qemu.engine import QemuEngine

__all__ = ["QemuEngine"]
