"""Memory that goes from domains to the host and back, on a made-up host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen.config.build import load_text
from pyxen.errors import ConfigError
from pyxen.xend.ballooning import Ballooning, Guest, plan
from tests.unit.xend.conftest import Xend
from tests.unit.xend.test_life import Boot, create, until

LOW, HIGH = 512, 1024


def guest(name: str, now: int, floor: int = 64, wanted: int = 1024) -> Guest:
    return Guest(name, now, floor, wanted)


@pytest.mark.parametrize(
    ("available", "pressed", "guests", "sizes"),
    [
        (700, False, [guest("a", 1024)], {}),
        (400, False, [], {}),
        (400, False, [guest("a", 1024)], {"a": 656}),
        (400, False, [guest("a", 1024), guest("b", 544)], {"a": 1024 - 245, "b": 544 - 122}),
        (100, False, [guest("a", 128)], {"a": 64}),
        (100, False, [guest("a", 66)], {"a": 64}),
        (100, False, [guest("a", 64), guest("b", 32)], {}),
        (2000, True, [guest("a", 1024)], {"a": 768}),
        (2000, False, [guest("a", 512)], {"a": 1024}),
        (1068, False, [guest("a", 512), guest("b", 1024)], {"a": 812}),
        (2000, False, [guest("a", 1024)], {}),
    ],
)
def test_plans(available: int, pressed: bool, guests: list[Guest], sizes: dict[str, int]) -> None:
    assert plan(available, pressed, LOW, HIGH, guests) == sizes


GUESTS = st.lists(
    st.tuples(st.integers(1, 9999), st.integers(1, 9999), st.integers(1, 9999)).map(
        lambda sizes: (sizes[0], min(sizes[1:]), max(sizes[1:]))
    ),
    max_size=5,
).map(lambda found: [Guest(str(number), *sizes) for number, sizes in enumerate(found)])


@given(st.integers(0, 5000), st.booleans(), GUESTS)
def test_no_plan_goes_below_a_floor_or_above_what_is_wanted(available: int, pressed: bool, guests: list[Guest]) -> None:
    sizes = plan(available, pressed, LOW, HIGH, guests)
    for each in guests:
        if (size := sizes.get(each.uuid)) is not None:
            assert min(each.now, each.floor) <= size <= max(each.now, each.wanted)
    moved = sum(abs(size - next(each.now for each in guests if each.uuid == uuid)) for uuid, size in sizes.items())
    assert moved <= max(HIGH, available)


def host(folder: Path, available_mib: int, pressure: float = 0.0) -> Path:
    (folder / "pressure").mkdir(exist_ok=True)
    (folder / "meminfo").write_text(f"MemAvailable: {available_mib * 1024} kB\n")
    (folder / "pressure/memory").write_text(f"some avg10={pressure:.2f} avg60=0.00 avg300=0.00 total=0\n")
    return folder


def size(xend: Xend, name: str = "web") -> int:
    return xend.domains.get(name).memory_mib


@pytest.mark.anyio
async def test_domains_with_a_floor_give_and_get_back(boot: Boot, tmp_path: Path) -> None:
    xend = await boot(balloon_low_mib=LOW, balloon_high_mib=HIGH)
    await create(xend, memory=256, min_memory=128)
    await create(xend, "other", memory=256)
    balloons = Ballooning(xend.life, host(tmp_path, 700))
    await balloons.look()
    assert (size(xend), size(xend, "other")) == (256, 256)
    host(tmp_path, 100)
    await balloons.look()
    await until(lambda: size(xend) == 128)
    assert size(xend, "other") == 256
    config = xend.domains.get("web").config
    assert config is not None and config.memory == 256
    assert "domain-ballooned" in xend.kinds()
    host(tmp_path, 4000)
    await balloons.look()  # the balloon is given time
    await balloons.look()
    assert size(xend) == 128
    await balloons.look()
    await until(lambda: size(xend) == 256)


@pytest.mark.anyio
async def test_pressure_counts_and_paused_domains_do_not(boot: Boot, tmp_path: Path) -> None:
    xend = await boot(balloon_low_mib=LOW, balloon_high_mib=HIGH)
    await create(xend, memory=256, min_memory=32)
    await xend.domains.pause("web")
    balloons = Ballooning(xend.life, host(tmp_path, 4000, pressure=25.0))
    await balloons.look()
    await xend.domains.unpause("web")
    await balloons.look()
    await until(lambda: size(xend) == 32)


@pytest.mark.anyio
async def test_a_domain_that_is_busy_is_left_alone(boot: Boot, tmp_path: Path) -> None:
    xend = await boot(balloon_low_mib=LOW, balloon_high_mib=HIGH)
    await create(xend, memory=256, min_memory=128)
    record = xend.life.registry.find("web")
    async with xend.life.registry.lock(record.uuid):
        await Ballooning(xend.life, host(tmp_path, 100)).look()
    assert "domain-ballooned" not in xend.kinds()


def test_a_floor_lies_below_the_memory() -> None:
    with pytest.raises(ConfigError, match=r"min_memory \(512 MiB\) must not be more than memory \(256 MiB\)"):
        load_text("image = 'tiny'; min_memory = 512", "x.cfg")
