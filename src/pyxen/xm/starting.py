"""Starting a domain and, when asked, connecting to its console before it has said a word."""

from __future__ import annotations

from collections.abc import Callable

from pyxen.api import Domain
from pyxen.client import Client


def with_console(
    client: Client, start: Callable[[bool], Domain], *, paused: bool, started: Callable[[Domain], None]
) -> None:
    """Start a domain (``start`` takes *paused*) and stay on its console until it ends or the user leaves.

    The domain starts paused and runs once the console is connected, so that even one that ends at once is heard.
    """
    from pyxen.xm.terminal import attach

    domain = start(True)
    started(domain)
    try:
        console = client.console(domain.uuid)
    except BaseException:
        # It was to run, with or without somebody to watch.
        if not paused:
            client.unpause(domain.uuid)
        raise
    with console:
        if not paused:
            client.unpause(domain.uuid)
        attach(console, drain_s=None)
