"""Two xends on one machine that trust each other, as two hosts with a shared folder would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tests.guest.host import Host, free_port, wait_for


class Side(Host):
    """A host that takes domains in."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        (self.root / "state" / "xend.toml").write_text(f'relocation = "127.0.0.1:{self.port}"\n')

    def start_with(self, environ: Mapping[str, str]) -> None:
        """Start xend again, with these variables set for it alone."""
        self.try_run("xend", "stop")
        before = self.environ
        self.environ = {**before, **environ}
        try:
            self.start()
        finally:
            self.environ = before

    @property
    def dead(self) -> bool:
        return self.try_run("xend", "status").returncode == 3

    def running(self, name: str = "web") -> bool:
        return self.domains().get(name, {}).get("power_state") == "running"


@contextlib.contextmanager
def pair() -> Iterator[tuple[Side, Side]]:
    sides: list[Side] = []
    try:
        for _ in range(2):
            sides.append(Side())
            sides[-1].start()
        for one, other in (sides, sides[::-1]):
            one.run("xm", "peer", "add", "other", stdin=other.xm("peer", "show"))
        yield sides[0], sides[1]
    finally:
        left = [line for side in sides for line in side.stop()]
    assert left == []


def migrate(source: Side, to: Side, *options: str, name: str = "web") -> str:
    return source.xm("migrate", "--live", "-p", str(to.port), *options, name, "127.0.0.1")


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
