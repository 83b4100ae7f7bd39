"""A few instructions that Python has no words for, as functions.

They lie in a page that is never writable and executable at once, and are called through ctypes with the GIL held.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Mapping
from typing import Final

from pyxen.errors import Unsupported

_SLOT: Final = 16
_loaded: list[mmap.mmap] = []
"""Pages must live as long as the process: there are functions into them."""


def load(code: Mapping[str, str]) -> dict[str, int]:
    """Addresses of functions, by name, of at most 16 bytes each (hexadecimal). Raises Unsupported."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unsupported(f"the Xen engine needs an x86-64 processor, not {platform.machine()}")
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for slot, text in enumerate(code.values()):
        function = bytes.fromhex(text)
        page[slot * _SLOT : slot * _SLOT + len(function)] = function
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise Unsupported("this system lets no process make code at run time (mprotect refused PROT_EXEC)")
    _loaded.append(page)
    return {name: address + slot * _SLOT for slot, name in enumerate(code)}
