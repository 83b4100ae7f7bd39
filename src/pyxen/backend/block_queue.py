"""One ring of a block device: requests in, transfers between guest memory and the disk, responses out."""

from __future__ import annotations

from pyxen.abi import blkif as abi
from pyxen.abi.blkif import Operation, Status
from pyxen.backend.disk import Disk
from pyxen.backend.granted import GrantedPages
from pyxen.backend.guest import GrantError
from pyxen.backend.limit import Limit
from pyxen.backend.ring import BackRing
from pyxen.backend.segments import BadRequest, Transfer, parse

# Plain numbers: see segments.
_READ, _WRITE, _BARRIER = Operation.READ.value, Operation.WRITE.value, Operation.WRITE_BARRIER.value
_FLUSH, _DISCARD, _INDIRECT = Operation.FLUSH.value, Operation.DISCARD.value, Operation.INDIRECT.value
_OKAY, _ERROR, _EOPNOTSUPP = Status.OKAY.value, Status.ERROR.value, Status.EOPNOTSUPP.value


class BlockQueue:
    """``serve`` is called by the queue's own thread whenever the guest has sent an event.

    A request waits there until ``limit`` allows it. ``bits`` is the guest's width, ``most_indirect`` the number of
    segments that it was offered.
    """

    def __init__(
        self, ring: BackRing, pages: GrantedPages, disk: Disk, limit: Limit, *, bits: int, most_indirect: int
    ) -> None:
        self._ring = ring
        self._pages = pages
        self._disk = disk
        self._limit = limit
        self._bits = bits
        self._most_indirect = most_indirect
        self.read_bytes = 0
        self.written_bytes = 0

    def serve(self) -> bool:
        """Do what waits now; returns whether the guest has to be notified. Raises RingError.

        Says nothing of what comes later: ask ``idle`` before going to sleep.
        """
        for raw in self._ring.take_all():
            operation, inside, _, identity, _ = abi.REQUEST.unpack(raw, self._bits)
            if operation == _INDIRECT:
                # The answer carries the operation inside, which lies where other requests count segments.
                operation = inside
            self._ring.respond(abi.RESPONSE.pack((identity, operation, self._status(raw)), self._bits))
        return self._ring.publish()

    def idle(self) -> bool:
        """Nothing waits, and the guest will send an event when something does. Raises RingError."""
        return not self._ring.ask_for_event()

    def close(self) -> None:
        """Give the guest's pages back."""
        self._pages.close()

    def _status(self, raw: bytes) -> int:
        try:
            if raw[0] == _DISCARD:
                return self._discard(raw)
            transfer = parse(raw, self._bits, self._read_page, self._most_indirect)
            return self._transfer(transfer)
        except (BadRequest, GrantError, OSError):
            return _ERROR
        finally:
            self._pages.done()

    def _transfer(self, transfer: Transfer) -> int:
        operation = transfer.operation
        self._limit.take(transfer.length)
        if operation == _FLUSH:
            self._disk.flush()
            return self._write(transfer) if transfer.segments else _OKAY
        if operation == _READ:
            return self._read(transfer)
        if operation not in (_WRITE, _BARRIER):
            return _EOPNOTSUPP
        if operation == _WRITE:
            return self._write(transfer)
        self._disk.flush()
        status = self._write(transfer) if transfer.segments else _OKAY
        self._disk.flush()
        return status

    def _read(self, transfer: Transfer) -> int:
        self._disk.read_into(transfer.offset, self._views(transfer, write=True))
        self.read_bytes += transfer.length
        return _OKAY

    def _write(self, transfer: Transfer) -> int:
        if self._disk.read_only:
            return _ERROR
        self._disk.write_from(transfer.offset, self._views(transfer, write=False))
        self.written_bytes += transfer.length
        return _OKAY

    def _views(self, transfer: Transfer, *, write: bool) -> list[memoryview]:
        """Straight into guest memory; ``write`` means that the guest's memory is written."""
        if not transfer.segments:
            raise BadRequest("a transfer without segments")
        self._check(transfer.offset, transfer.length)
        get = self._pages.get
        return [get(gref, write=write)[start:end] for gref, start, end in transfer.segments]

    def _discard(self, raw: bytes) -> int:
        request = abi.DISCARD.unpack(raw, self._bits)
        if not self._disk.discards:
            return _EOPNOTSUPP
        offset, length = request.sector * abi.SECTOR_SIZE, request.nr_sectors * abi.SECTOR_SIZE
        self._check(offset, length)
        if self._disk.read_only:
            return _ERROR
        if length:
            self._disk.discard(offset, length)
        return _OKAY

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self._disk.size // abi.SECTOR_SIZE * abi.SECTOR_SIZE:
            raise BadRequest(f"{length} bytes at {offset}, beyond the end of the disk")

    def _read_page(self, gref: int) -> bytes:
        return bytes(self._pages.get(gref, write=False))
