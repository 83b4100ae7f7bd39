"""pyxen: Xen in Python."""

__version__ = "0.1.0"
