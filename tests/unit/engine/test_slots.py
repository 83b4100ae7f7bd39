"""Where a domain's devices lie: a guest that was saved meets its machine again only if nothing has moved."""

from __future__ import annotations

import msgspec
import pytest

from pyxen.config.model import Disk, DomainConfig, DomainType, Vif, vif_numbers
from pyxen.engine.contract import DomainSpec
from pyxen.engine.qemu.slots import address, can_be_plugged, laid_out
from pyxen.errors import ResourceExhausted


def spec(*disks: str, vifs: tuple[Vif, ...] = (), slots: dict[str, int] | None = None, **config: object) -> DomainSpec:
    made = DomainConfig(
        name="web",
        disk=tuple(Disk(vdev=vdev, target=f"/srv/{vdev}") for vdev in disks),
        vif=vifs,
        **config,  # type: ignore[arg-type]
    )
    return DomainSpec(domid=1, uuid="u", config=made, slots=slots or {})


def test_disks_come_first_in_the_order_of_their_letters() -> None:
    assert laid_out(spec("xvdb", "xvda", vifs=(Vif(),))).slots == {
        "xvda": 2,
        "xvdb": 3,
        "nic0": 4,
        "balloon": 5,
        "rng": 6,
        "agents": 7,
    }


def test_what_has_a_slot_keeps_it_and_what_is_new_gets_a_free_one() -> None:
    before = laid_out(spec("xvda", "xvdb"))
    gone = laid_out(msgspec.structs.replace(before, config=spec("xvda").config))
    assert gone.slots == {"xvda": 2, "balloon": 4, "rng": 5, "agents": 6}
    more = laid_out(msgspec.structs.replace(gone, config=spec("xvda", "xvdc", "xvdd").config))
    assert more.slots == {"xvda": 2, "balloon": 4, "rng": 5, "agents": 6, "xvdc": 3, "xvdd": 7}
    assert laid_out(more) == more


def test_a_spec_survives_its_file() -> None:
    before = laid_out(spec("xvda"))
    assert msgspec.json.decode(msgspec.json.encode(before), type=DomainSpec) == before


def test_an_express_bus_has_ports_for_what_may_come_and_go() -> None:
    vifs = (Vif(), Vif(model="e1000"))
    placed = laid_out(spec("sda", "xvda", vifs=vifs, type=DomainType.HVM, hdtype="ahci"))
    assert placed.slots == {
        "ports0": 1,
        "ports1": 2,
        "sata": 3,
        "xvda": 32,
        "nic0": 33,
        "nic1": 4,
        "balloon": 5,
        "rng": 6,
        "agents": 7,
        "display": 8,
    }
    assert address(placed.config, placed.slots, "xvda") == {"bus": "port0", "addr": "0x0"}
    assert address(placed.config, placed.slots, "nic1") == {"bus": "pcie.0", "addr": "0x4"}
    assert [can_be_plugged(placed, device) for device in ("xvda", "nic0", "nic1")] == [True, True, False]
    more = msgspec.structs.replace(
        placed, config=msgspec.structs.replace(placed.config, vif=(*vifs, Vif(model="e1000")))
    )
    assert laid_out(more).slots["nic2"] == 34


def test_ports_run_out() -> None:
    names = [f"xvd{letter}" for letter in "abcdefghijklmnopqr"]
    placed = laid_out(spec(*names, type=DomainType.HVM, hdtype="ahci"))
    assert [placed.slots[name] for name in names] == [*range(32, 48), 3, 4]
    more = msgspec.structs.replace(placed, config=spec(*names, "xvdz", type=DomainType.HVM, hdtype="ahci").config)
    with pytest.raises(ResourceExhausted, match="all 16 ports of 'web' are taken"):
        laid_out(more)


def test_a_state_from_before_there_were_ports_gets_none() -> None:
    slots = {"xvda": 1, "balloon": 2, "rng": 3, "agents": 4, "display": 5}
    old = spec("xvda", "xvdb", slots=slots, type=DomainType.HVM, hdtype="ahci")
    assert laid_out(old).slots == {**slots, "xvdb": 6}
    assert not can_be_plugged(laid_out(old), "xvdb")


def test_more_devices_than_slots_are_refused() -> None:
    vifs = tuple(Vif() for _ in range(26))
    assert max(laid_out(spec("xvda", vifs=vifs)).slots.values()) == 31
    with pytest.raises(ResourceExhausted, match="31 PCI devices, but there is room for 30"):
        laid_out(spec("xvda", "xvdb", vifs=vifs))


@pytest.mark.parametrize(
    ("devids", "numbers"),
    [((), []), ((None, None), [0, 1]), ((1, None), [1, 0]), ((None, 0, None), [1, 0, 2]), ((3,), [3])],
)
def test_interfaces_without_a_number_get_the_lowest(devids: tuple[int | None, ...], numbers: list[int]) -> None:
    assert vif_numbers(Vif(devid=devid) for devid in devids) == numbers
