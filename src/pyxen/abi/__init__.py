"""Xen's public interface: numbers and structures, from xen/include/public. No behaviour here."""
