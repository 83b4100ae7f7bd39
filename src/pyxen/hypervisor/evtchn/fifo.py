"""The FIFO ABI: an event word for each port, linked into sixteen queues for each VCPU, by priority.

The guest consumes the queues while we append; every change of a word is a locked one. The shape of the protocol is in
docs/designs/event-channels-FIFO and xen/include/public/event_channel.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pyxen.abi.errno import EINVAL, ENOSPC, XenError
from pyxen.abi.event_channel import (
    FIFO_BUSY,
    FIFO_CONTROL_HEADS,
    FIFO_CONTROL_READY,
    FIFO_CONTROL_SIZE,
    FIFO_LINK_MASK,
    FIFO_LINKED,
    FIFO_MASKED,
    FIFO_PENDING,
    FIFO_PRIORITY_MIN,
    FIFO_WORDS_PER_PAGE,
    MAX_PORTS_FIFO,
)
from pyxen.abi.shared_info import PAGE_SIZE
from pyxen.hypervisor.atomic import SharedPage

if TYPE_CHECKING:
    from pyxen.hypervisor.evtchn.channels import Channel
    from pyxen.hypervisor.vcpu import Vcpu

_MASKED = 1 << FIFO_MASKED
_LINKED = 1 << FIFO_LINKED
_BUSY = 1 << FIFO_BUSY


class ControlBlock:
    """A VCPU's control block in guest memory, and the tails of its queues, which only we know."""

    def __init__(self, page: SharedPage, gfn: int, offset: int) -> None:
        self.page = page
        self.gfn = gfn
        self.offset = offset
        self.tails = [0] * (FIFO_PRIORITY_MIN + 1)

    def set_head(self, priority: int, port: int) -> None:
        self.page.u32[(self.offset + FIFO_CONTROL_HEADS) // 4 + priority] = port

    def set_ready(self, priority: int) -> bool:
        """Tell the guest that the queue isn't empty; whether it had been told before."""
        return bool(self.page.test_and_set32(self.offset + FIFO_CONTROL_READY, priority))


class Fifo:
    """Event words in pages that the guest adds one by one, and a control block for each VCPU."""

    max_ports = MAX_PORTS_FIFO

    def __init__(self, vcpus: list[Vcpu], page: Callable[[int], SharedPage]) -> None:
        self._vcpus = vcpus
        self._page = page
        self.blocks: list[ControlBlock | None] = [None] * len(vcpus)
        self.array: list[SharedPage] = []
        self.array_gfns: list[int] = []
        self._last_queue: dict[int, tuple[int, int]] = {}
        # By port, not by channel: a closed port's word may still stand in a queue when the port is opened again.

    def map_control_block(self, vcpu: int, gfn: int, offset: int) -> None:
        """Use a guest's page from ``offset`` on. Raises XenError, also if the VCPU has one already."""
        if offset > PAGE_SIZE - FIFO_CONTROL_SIZE or offset % 8 or self.blocks[vcpu] is not None:
            raise XenError(EINVAL)
        self.blocks[vcpu] = ControlBlock(self._page(gfn), gfn, offset)

    def expand(self, gfn: int, channels: Iterable[Channel]) -> None:
        """Add a page of event words, and raise what had to wait for it."""
        if len(self.array) * FIFO_WORDS_PER_PAGE >= MAX_PORTS_FIFO:
            raise XenError(ENOSPC)
        self.array.append(self._page(gfn))
        self.array_gfns.append(gfn)
        for channel in channels:
            if channel.pending_later and channel.port < len(self.array) * FIFO_WORDS_PER_PAGE:
                channel.pending_later = False
                self.set_pending(channel)

    def _word(self, port: int) -> tuple[SharedPage, int] | None:
        """The page and the offset of a port's word; None if the guest hasn't given that page yet."""
        index = port // FIFO_WORDS_PER_PAGE
        if index >= len(self.array):
            return None
        return self.array[index], port % FIFO_WORDS_PER_PAGE * 4

    def set_pending(self, channel: Channel) -> bool:
        """Make the channel's event pending; whether it wasn't before."""
        word = self._word(channel.port)
        if word is None:
            channel.pending_later = True
            return True
        block = self.blocks[channel.vcpu]
        if block is None:
            # The guest must not unmask an event before it has set up the VCPU's block: nothing to deliver.
            return False
        page, offset = word
        fresh = not page.test_and_set32(offset, FIFO_PENDING)
        if not page.u32[offset // 4] & _MASKED and not page.test_and_set32(offset, FIFO_LINKED):
            self._append(channel, block)
        return fresh

    def _append(self, channel: Channel, block: ControlBlock) -> None:
        """Put a channel that has just become LINKED at the end of its queue."""
        port, priority = channel.port, channel.priority
        old_vcpu, old_priority = self._last_queue.get(port, (channel.vcpu, priority))
        old = self.blocks[old_vcpu]
        if old is not None and old.tails[old_priority] == port:
            # It was the last of its queue and is linked anew: that queue is empty, and must not be appended to
            # through this word once it stands in another queue.
            old.tails[old_priority] = 0
        self._last_queue[port] = (channel.vcpu, priority)
        tail = block.tails[priority]
        linked = bool(tail) and self._link(tail, port)
        if not linked:
            block.set_head(priority, port)
        block.tails[priority] = port
        if not linked and not block.set_ready(priority):
            self._vcpus[channel.vcpu].mark_events_pending()

    def _link(self, tail: int, port: int) -> bool:
        """Let the tail's word point to ``port``, if the guest hasn't consumed it: then the queue is empty."""
        word = self._word(tail)
        if word is None:
            return False
        page, offset = word
        words, index = page.u32, offset // 4
        for attempt in range(6):
            old = words[index]
            if not old & _LINKED:
                if attempt:
                    page.test_and_clear32(offset, FIFO_BUSY)
                return False
            new = (old & ~(_BUSY | FIFO_LINK_MASK)) | port
            if page.compare_exchange32(offset, old, new) == old:
                return True
            # The guest must not change the mask of a BUSY word, so few more failures can follow.
            page.test_and_set32(offset, FIFO_BUSY)
        page.test_and_clear32(offset, FIFO_BUSY)
        # Only a guest that breaks the protocol comes here. As if linked: it loses its own event.
        return True

    def clear_pending(self, channel: Channel) -> None:
        """Clear the bit; the guest unlinks the word when it comes by."""
        channel.pending_later = False
        word = self._word(channel.port)
        if word is not None:
            word[0].test_and_clear32(word[1], FIFO_PENDING)

    def is_pending(self, channel: Channel) -> bool:
        word = self._word(channel.port)
        return word is not None and bool(word[0].u32[word[1] // 4] >> FIFO_PENDING & 1)

    def unmask(self, channel: Channel) -> None:
        """Clear the mask bit, and link the word if its event is pending."""
        word = self._word(channel.port)
        if word is None:
            return
        page, offset = word
        page.test_and_clear32(offset, FIFO_MASKED)
        if page.u32[offset // 4] >> FIFO_PENDING & 1:
            self.set_pending(channel)

    def set_priority(self, channel: Channel, priority: int) -> None:
        """For future events; one that is queued stays where it is."""
        if priority > FIFO_PRIORITY_MIN:
            raise XenError(EINVAL)
        channel.priority = priority
