"""Event channels: ports, what they are bound to, and how the guest learns of an event.

``channels`` keeps the ports, ``two_level`` and ``fifo`` are the two shapes of pending bits that guests choose from.
"""

from pyxen.hypervisor.evtchn.channels import BackendPort, Channel, EventChannels, State

__all__ = ["BackendPort", "Channel", "EventChannels", "State"]
