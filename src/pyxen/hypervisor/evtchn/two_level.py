"""The 2-level ABI: a bitmap of pending ports in shared_info, and which of its words to look at in each vcpu_info."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.abi.errno import ENOSYS, XenError

if TYPE_CHECKING:
    from pyxen.hypervisor.evtchn.channels import Channel
    from pyxen.hypervisor.shared_info import SharedInfo
    from pyxen.hypervisor.vcpu import Vcpu


class TwoLevel:
    """Pending and mask bits in ``shared_info``. A port beyond what the layout holds is never pending."""

    def __init__(self, shared_info: SharedInfo, vcpus: list[Vcpu]) -> None:
        self._info = shared_info
        self._vcpus = vcpus

    @property
    def max_ports(self) -> int:
        return self._info.layout.ports

    def set_pending(self, channel: Channel) -> bool:
        """Make the channel's event pending; whether it wasn't before. The order of the steps is the ABI's."""
        info, port = self._info, channel.port
        layout = info.layout
        if port >= layout.ports or info.page.test_and_set(layout.pending, port):
            return False
        if not info.page.view[layout.mask + (port >> 3)] >> (port & 7) & 1:
            self._select(channel)
        return True

    def _select(self, channel: Channel) -> None:
        vcpu = self._vcpus[channel.vcpu]
        if self._info.bits == 64:
            was_set = vcpu.info.test_and_set(vcpu.info_offset + self._info.layout.pending_sel, channel.port >> 6)
        else:
            was_set = vcpu.info.test_and_set32(vcpu.info_offset + self._info.layout.pending_sel, channel.port >> 5)
        if not was_set:
            vcpu.mark_events_pending()

    def clear_pending(self, channel: Channel) -> None:
        if channel.port < self._info.layout.ports:
            self._info.page.test_and_clear(self._info.layout.pending, channel.port)

    def is_pending(self, channel: Channel) -> bool:
        port, layout = channel.port, self._info.layout
        return port < layout.ports and bool(self._info.page.view[layout.pending + (port >> 3)] >> (port & 7) & 1)

    def unmask(self, channel: Channel) -> None:
        """Clear the mask bit, and deliver what was held back by it."""
        layout = self._info.layout
        if channel.port >= layout.ports:
            return
        if self._info.page.test_and_clear(layout.mask, channel.port) and self.is_pending(channel):
            self._select(channel)

    def set_priority(self, channel: Channel, priority: int) -> None:
        raise XenError(ENOSYS, "2-level events have no priorities")
