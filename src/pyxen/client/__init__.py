"""The Python SDK: typed calls on the API of xend.

    from pyxen.client import Client

    with Client() as xend:
        for domain in xend.domains():
            print(domain.name, domain.state)

Only what is used is imported: the asynchronous client brings an HTTP library, the console a WebSocket one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyxen.client._calls import DomainNotFound
from pyxen.client.sync import Client
from pyxen.client.transport import Address, find_address

if TYPE_CHECKING:
    from pyxen.client.aio import AsyncClient
    from pyxen.client.console import Console

__all__ = ["Address", "AsyncClient", "Client", "Console", "DomainNotFound", "find_address"]

_LAZY = {"AsyncClient": "pyxen.client.aio", "Console": "pyxen.client.console"}


def __getattr__(name: str) -> Any:
    if module := _LAZY.get(name):
        from importlib import import_module

        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
