"""Twenty domains at once."""

from __future__ import annotations

import pytest

from tests.guest.host import PROMPT, Host, type_line

COUNT = 20


@pytest.mark.timeout(900)
def test_twenty_domains_each_with_its_own_console(host: Host) -> None:
    names = [f"n{number:02}" for number in range(COUNT)]
    for name in names:
        host.xm("create", "image=tiny", f"name={name}", "memory=128")
    rows = [line.split() for line in host.xm("list").splitlines()[1:]]
    assert [row[0] for row in rows] == ["Domain-0", *names]
    assert [int(row[1]) for row in rows] == list(range(COUNT + 1))
    consoles = {name: host.console(name, timeout=240) for name in names}
    for console in consoles.values():
        console.expect(PROMPT)
    for name, console in consoles.items():
        assert type_line(console, "hostname") == name
        console.close()
    host.xm("shutdown", "-a", "-w", timeout=300)
    assert host.domains() == {}
