"""What xend's two kinds of agent have in common: a link that breaks, and somebody who wants to know."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar


class AnyLink(Protocol):
    """A conversation over a socket."""

    on_gone: Callable[[], None]
    """Called when it has ended."""

    @property
    def broken(self) -> bool: ...

    def close(self) -> None: ...


L = TypeVar("L", bound=AnyLink)


async def open_link(
    connection: socket.socket,
    make: Callable[[asyncio.StreamReader, asyncio.StreamWriter], L],
    greet: Callable[[L], Awaitable[None]],
    timeout_s: float | None,
) -> L:
    """A link over a connected socket, once it has been greeted. Raises TimeoutError if that takes too long."""
    try:
        reader, writer = await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise
    link = make(reader, writer)
    try:
        async with asyncio.timeout(timeout_s):
            await greet(link)
    except BaseException:
        link.close()
        raise
    return link


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
