"""Seeing what the guest asks of its hypervisor: every hypercall and exit, events, timers, xenstore's requests.

While nobody looks nothing of this runs. While somebody does, the VCPUs' threads put raw tuples into a ring of fixed
size (``ring``, ``observed``), and the main loop makes words of them (``decode``) and sends them (``stream``), for at
most a part of its time. Who reads too slowly loses the oldest, and is told how many.
"""

from pyxen.hypervisor.trace.stream import Tracing
from pyxen.hypervisor.trace.words import REASONS

__all__ = ["REASONS", "Tracing"]
