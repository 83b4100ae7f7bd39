"""A device's life, seen in the store by a scripted front end."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pyxen.abi.xenbus import XenbusState
from pyxen.backend.xenbus import Address, Device, DeviceError, Frontend, introduce
from pyxen.xenstore.errors import XsError
from tests.unit.backend.guest import ScriptedGuest

ADDRESS = Address(1, "toy", 5)
BACK = "/local/domain/0/backend/toy/1/5"


class Toy:
    """A driver that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def offer(self) -> Mapping[str, str | int]:
        self.calls.append("offer")
        return {"feature-toy": 1}

    def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
        self.calls.append(f"connect {frontend.number('ring-ref')}")
        return {"size": 7}

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def settle(self) -> None:
        self.calls.append("settle")

    def close(self) -> None:
        self.calls.append("close")


def begin() -> tuple[ScriptedGuest, Toy, Device]:
    guest, toy = ScriptedGuest(), Toy()
    introduce(guest.local, ADDRESS, frontend={"name": "x"}, backend={"mode": "w"})
    return guest, toy, Device(guest.local, ADDRESS, toy)


def state(guest: ScriptedGuest) -> int:
    return int(guest.xenstore.read(f"{BACK}/state"))


def test_a_device_connects_and_is_removed() -> None:
    guest, toy, device = begin()
    assert state(guest) == XenbusState.INIT_WAIT
    assert guest.xenstore.read(f"{BACK}/feature-toy") == b"1"
    assert guest.xenstore.read("device/toy/5/backend").decode() == BACK
    assert guest.xenstore.perms("device/toy/5/state") == ["n1", "r0"]
    with pytest.raises(XsError):
        guest.xenstore.write(f"{BACK}/state", b"6")
    guest.write("device/toy/5/ring-ref", 8)
    assert toy.calls == ["offer"]
    guest.write("device/toy/5/state", 3)
    assert state(guest) == XenbusState.CONNECTED
    assert guest.xenstore.read(f"{BACK}/size") == b"7"
    guest.write("device/toy/5/state", 4)
    assert toy.calls == ["offer", "connect 8"]
    gone = []
    device.on_removed = lambda: gone.append(True)
    device.request_close()
    assert (state(guest), guest.xenstore.read(f"{BACK}/online")) == (XenbusState.CLOSING, b"0")
    guest.write("device/toy/5/state", 5)
    assert not gone
    guest.write("device/toy/5/state", 6)
    assert gone
    assert toy.calls[-2:] == ["disconnect", "close"]
    assert guest.local.read(f"{BACK}/state") is None
    assert guest.local.read("/local/domain/1/device/toy/5/state") is None


def test_a_front_end_that_starts_anew_is_offered_the_device_again() -> None:
    guest, toy, _ = begin()
    guest.write("device/toy/5/ring-ref", 8)
    guest.write("device/toy/5/state", 4)
    guest.write("device/toy/5/state", 6)
    assert state(guest) == XenbusState.CLOSED
    guest.write("device/toy/5/state", 1)
    assert state(guest) == XenbusState.INIT_WAIT
    guest.write("device/toy/5/state", 4)
    assert state(guest) == XenbusState.CONNECTED
    assert toy.calls.count("connect 8") == 2


def test_what_the_front_end_leaves_out_is_noted() -> None:
    guest, _, _ = begin()
    guest.write("device/toy/5/state", 4)
    assert state(guest) == XenbusState.CLOSING
    assert "ring-ref is missing" in (guest.local.read(ADDRESS.error) or "")


@pytest.mark.parametrize("value", ["", "-1", "x", "4294967296", "9" * 2000, "٣", " 1", "1_0"])
def test_a_number_that_is_none_is_refused(value: str) -> None:
    guest, _, _ = begin()
    guest.write("device/toy/5/ring-ref", value)
    guest.write("device/toy/5/state", 4)
    assert state(guest) == XenbusState.CLOSING


@pytest.mark.parametrize("value", ["", "-1", "x", "9" * 2000, "77", "\udcff"])
def test_a_state_that_is_none_is_taken_as_unknown(value: str) -> None:
    guest, toy, _ = begin()
    guest.xenstore.write("device/toy/5/state", value.encode("utf-8", "surrogateescape"))
    guest.run_loop()
    assert state(guest) == XenbusState.INIT_WAIT
    assert set(toy.calls) <= {"offer", "disconnect"}


def test_a_driver_may_refuse() -> None:
    class Refusing(Toy):
        def connect(self, frontend: Frontend) -> Mapping[str, str | int]:
            raise DeviceError("no")

    guest = ScriptedGuest()
    introduce(guest.local, ADDRESS)
    Device(guest.local, ADDRESS, Refusing())
    guest.write("device/toy/5/state", 4)
    assert guest.local.read(ADDRESS.error) == "no"


def test_an_update_makes_the_front_end_look_again() -> None:
    guest, _, device = begin()
    guest.write("device/toy/5/ring-ref", 8)
    guest.write("device/toy/5/state", 4)
    guest.xenstore.watch(f"{BACK}/state", "t")
    guest.xenstore.heard()
    device.update({"size": 9})
    assert guest.xenstore.heard() == [(f"{BACK}/state", "t")]
    assert guest.xenstore.read(f"{BACK}/size") == b"9"


def test_a_device_of_a_front_end_that_never_came_goes_at_once() -> None:
    guest, toy, device = begin()
    guest.write("device/toy/5/state", 6)
    device.request_close()
    assert guest.local.read(f"{BACK}/state") is None
    assert toy.calls[-1] == "close"
