"""Interface specifications, rates and amounts of memory."""

from __future__ import annotations

import pytest

from pyxen.config.model import Forward, Vif
from pyxen.config.sizes import parse_mib, parse_rate
from pyxen.config.vif import parse_forwards, parse_vif
from pyxen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Vif()),
        (" , ", Vif()),
        ("mac=00:16:3E:AA:bb:0c,bridge=xenbr0", Vif(mac="00:16:3e:aa:bb:0c", bridge="xenbr0")),
        ("mac=00-16-3e-00-00-01", Vif(mac="00:16:3e:00:00:01")),
        ("mac=,bridge=", Vif()),
        ("type=ioemu, bridge=br0", Vif(bridge="br0", model="rtl8139")),
        ("model=e1000,type=ioemu", Vif(model="e1000")),
        ("type=vif,model=netfront", Vif()),
        ("rate=10MB/s@20ms,vifname=web0,backend=0", Vif(rate=10_000_000, vifname="web0")),
        ("forward=2222:22", Vif(forward=(Forward(2222, 22),))),
        (
            "forward=2222:22+udp:5353:53,forward=tcp:0.0.0.0:80:8080",
            Vif(forward=(Forward(2222, 22), Forward(5353, 53, "udp"), Forward(80, 8080, "tcp", "0.0.0.0"))),
        ),
    ],
)
def test_forms(text: str, expected: Vif) -> None:
    assert parse_vif(text) == expected


def test_words_without_effect_are_reported() -> None:
    warnings: list[str] = []
    assert parse_vif("ip=10.0.0.1,script=,mtu=1500", warn=warnings.append) == Vif()
    assert warnings == ["`ip` of a vif has no effect in pyxen", "`mtu` of a vif has no effect in pyxen"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("br0", "'br0' should be a pair, separated by an equals sign"),
        ("brigde=br0", "did you mean 'bridge'?"),
        ("mac=00:16:3e:00:00", "is no MAC address"),
        ("bridge=../../etc", "is no name of an interface"),
        ("vifname=-x", "is no name of an interface"),
        ("vifname=abcdefghijklmnop", "is no name of an interface"),
        ("model=a b", "is no network card's name"),
        ("type=tap", "neither vif nor ioemu"),
        ("backend=3", "back ends in another domain"),
        ("rate=10", "is not a rate"),
        ("rate=999999999999GB/s", "a rate such as"),
        ("forward=22", "is no port forward"),
        ("forward=0:22", "outside 1 to 65535"),
        ("forward=22:65536", "outside 1 to 65535"),
        ("forward=sctp:1:2", "is no port forward"),
        ("forward=" + "+".join(["1:1"] * 257), "ports such as"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_vif(text)
    assert reason in caught.value.message
    assert caught.value.key == "vif"
    assert caught.value.hint


def test_forwards_alone() -> None:
    assert parse_forwards("udp:53:53 + 1:2") == (Forward(53, 53, "udp"), Forward(1, 2))


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("10MB/s", 10_000_000), ("80Mb/s", 10_000_000), ("1KB/s@50us", 1000), ("2GB/s@1s", 2 * 10**9), ("7B/s", 7)],
)
def test_rates(text: str, bytes_per_second: int) -> None:
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "10", "10MB", "1.5MB/s", "-1B/s", "10mB/s", "10MB/s@", "٣B/s", "0B/s", "7b/s"])
def test_wrong_rates(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512", 512), ("512M", 512), ("512 MiB", 512), ("2G", 2048), ("1.5g", 1536), ("1048576k", 1024), ("1T", 1 << 20)],
)
def test_memory(text: str, mib: int) -> None:
    assert parse_mib(text) == mib


def test_memory_in_another_unit() -> None:
    assert parse_mib("2", unit="g") == 2048
    assert parse_mib("2m", unit="g") == 2


@pytest.mark.parametrize("text", ["", "M", "x", "-1", "1.M", "100k", "1.0001G", "1e3", "9" * 20])
def test_wrong_memory(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_mib(text)
