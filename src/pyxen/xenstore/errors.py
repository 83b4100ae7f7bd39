"""What can go wrong with a request, and with a whole connection."""

from __future__ import annotations

from pyxen.abi.xs_wire import Error


class XsError(Exception):
    """A request is refused; ``error`` goes back over the wire by its name."""

    def __init__(self, error: Error, what: str = "") -> None:
        super().__init__(f"{what}: {error.name}" if what else error.name)
        self.error = error


class ProtocolError(Exception):
    """The other side sent what is no message: its connection is of no further use."""
