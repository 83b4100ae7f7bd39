"""Two xends on one machine that trust each other, as two hosts with a shared folder would.

Each has a network of its own, where the test can make such: a network namespace, with a cable between them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator

from tests.guest.host import Host, free_port, wait_for


class Side(Host):
    """A host that takes domains in, at an address in a network namespace (None: this one)."""

    def __init__(self, address: str, namespace: str | None) -> None:
        super().__init__()
        self.address, self.namespace = address, namespace
        self.inside_of: list[str] = []
        """Words before xend's own, of what it is to run in besides."""
        self.port = free_port()
        (self.root / "state" / "xend.toml").write_text(f'relocation = "{address}:{self.port}"\n')

    def argv(self, *words: str) -> list[str]:
        # Not ip netns exec, which mounts another /sys.
        enter = [] if self.namespace is None else ["nsenter", f"--net=/run/netns/{self.namespace}"]
        return [*enter, *(self.inside_of if words[0] == "xend" else []), *super().argv(*words)]

    def running(self, name: str = "web") -> bool:
        return self.domains().get(name, {}).get("power_state") == "running"


@contextlib.contextmanager
def _networks() -> Iterator[list[tuple[str, str | None]]]:
    """Two addresses that reach each other, and the namespaces that they are in."""
    if os.geteuid() != 0 or "PYXEN_TEST_HOST" in os.environ:  # busybox' ip knows no namespaces
        yield [("127.0.0.1", None), ("127.0.0.1", None)]
        return
    names = [f"pyxen-test-{os.getpid()}-{end}" for end in "ab"]
    addresses = ["192.0.2.1", "192.0.2.2"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _ip("-n", name, "link", "set", link, "up")
        yield list(zip(addresses, names, strict=True))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def pair(prepare: Callable[[Side], None] = lambda side: None) -> Iterator[tuple[Side, Side]]:
    """``prepare`` is called with each side before its xend starts."""
    sides: list[Side] = []
    with _networks() as networks:
        try:
            for address, namespace in networks:
                sides.append(Side(address, namespace))
                prepare(sides[-1])
                sides[-1].start()
            for one, other in (sides, sides[::-1]):
                one.run("xm", "peer", "add", "other", stdin=other.xm("peer", "show"))
            yield sides[0], sides[1]
        finally:
            left = [line for side in sides for line in side.stop()]
    assert left == []


def migrate(source: Side, to: Side, *options: str, name: str = "web") -> str:
    return source.xm(*_words(to, options, name))


def try_migrate(source: Side, to: Side, *options: str, name: str = "web") -> subprocess.CompletedProcess[str]:
    return source.try_run("xm", *_words(to, options, name))


def start_migrating(source: Side, to: Side, *options: str, name: str = "web") -> subprocess.Popen[str]:
    return source.popen("xm", *_words(to, options, name))


def _words(to: Side, options: tuple[str, ...], name: str) -> list[str]:
    return ["migrate", "--live", "-p", str(to.port), *options, name, to.address]


def exactly_one(one: Side, other: Side, name: str = "web") -> Side:
    """Wait until the domain runs on one side and is unknown to the other; the side that it runs on."""
    wait_for(
        lambda: (
            {one.running(name), other.running(name)} == {True, False}
            and {name in one.domains(), name in other.domains()} == {True, False}
        ),
        "it runs on exactly one side",
    )
    return one if one.running(name) else other
