"""What xend's two kinds of agent have in common: a link that breaks, and somebody who wants to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class AnyLink(Protocol):
    """A conversation over a socket."""

    on_gone: Callable[[], None]
    """Called when it has ended."""

    @property
    def broken(self) -> bool: ...

    def close(self) -> None: ...


L = TypeVar("L", bound=AnyLink)


class Linked(Generic[L]):
    """An agent of the domain ``name``, at the other end of a link."""

    def __init__(self, name: str, link: L) -> None:
        self._name = name
        self._link = link

    @property
    def broken(self) -> bool:
        return self._link.broken

    @property
    def on_gone(self) -> Callable[[], None]:
        return self._link.on_gone

    @on_gone.setter
    def on_gone(self, call: Callable[[], None]) -> None:
        self._link.on_gone = call

    def close(self) -> None:
        self._link.close()
