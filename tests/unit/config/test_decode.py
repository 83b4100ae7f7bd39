"""JSON bodies, the schema, and the tables behind them."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import msgspec
import pytest

from pyxen.config.build import load_text
from pyxen.config.decode import decode
from pyxen.config.keys import GENERAL, KEYS, PARTS, expected, reference_markdown
from pyxen.config.model import Disk, DomainConfig, Forward, PciDevice, Share, UsbDevice, Vif
from pyxen.config.schema import schema
from pyxen.errors import ConfigError


def test_bytes_text_and_objects() -> None:
    wanted = DomainConfig(name="x", memory=64, disk=(Disk("xvda", "/a"),))
    body = {"name": "x", "memory": 64, "disk": [{"vdev": "xvda", "target": "/a"}]}
    for data in (msgspec.json.encode(body), msgspec.json.encode(body).decode(), body):
        assert decode(data) == wanted


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        (b"", None, "must be JSON"),
        (b"{", None, "must be JSON"),
        (b"[" * 100_000, None, "must be an object"),
        (b'{"name":"x"} y', None, "must be JSON"),
        (b'{"name":"\xff"}', None, "must be text in UTF-8"),
        (b'{"name":"\\ud800"}', None, "must be JSON"),
        (b"[]", None, "must be an object of keys and values"),
        (b"{}", "name", "name is missing"),
        (b'{"name":"x","memmory":1}', "memmory", "unknown key 'memmory'; did you mean 'memory'?"),
        (b'{"name":5}', "name", "name must be 1 to 64"),
        (b'{"name":"x","memory":0}', "memory", "memory must be a number of MiB from 1 to 16777216"),
        (b'{"name":"x","memory":1e400}', "memory", "memory must be a number of MiB"),
        (b'{"name":"x","memory":"1"}', "memory", "memory must be a number of MiB"),
        (b'{"name":"x","type":"pv"}', "type", "type must be one of pvh, hvm"),
        (b'{"name":"x","disk":[{}]}', "disk", "disk[0]: vdev is missing"),
        (b'{"name":"x","disk":[{"vdev":"xvda","size":1}]}', "disk", "disk[0]: unknown key 'size'"),
        (b'{"name":"x","disk":[{"vdev":"7"}]}', "disk", "disk[0].vdev must be a device name such as xvda"),
        (b'{"name":"x","disk":{}}', "disk", "disk must be a list of disks"),
        (b'{"name":"x","vif":[{"forward":[{"host":0,"guest":1}]}]}', "vif", "vif[0].forward[0].host must be a port"),
        (b'{"name":"x","vif":[{"rate":1e30}]}', "vif", "vif[0].rate must be a rate"),
        (b'{"name":"x","usbdevice":["webcam"]}', "usbdevice", "usbdevice[0] must be one or a list of tablet"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refusals(data: bytes, key: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(data)
    assert message in caught.value.message
    assert caught.value.key == key


@pytest.mark.parametrize(
    "data",
    [None, 5, [], "", {1: 2}, {"name": "\ud800"}, {"name": "x", "description": "\ud800"}, {"name": object()}, object()],
    ids=lambda data: type(data).__name__,
)
def test_objects_that_json_can_t_be(data: object) -> None:
    with pytest.raises(ConfigError):
        decode(data)


PLAIN: dict[str, Any] = {
    "name": "x",
    "uuid": "6c1c0fe2-1f6a-4b66-a6c1-2c2a1f0a4f11",
    "image": "tiny",
    "boot": "c",
    "hdtype": "ide",
    "vnclisten": "127.0.0.1",
    "vga": "none",
    "serial": "pty",
    "usbdevice": ["tablet"],
    "disk": [{"vdev": "xvda"}],
    "vif": [
        {
            "mac": "00:16:3e:00:00:01",
            "bridge": "br0",
            "vifname": "v",
            "model": "e1000",
            "forward": [{"host": 1, "guest": 2, "protocol": "tcp", "address": "127.0.0.1"}],
        }
    ],
    "p9": [{"tag": "src", "path": "/srv"}],
    "pci": [{"address": "0000:03:00.0"}],
    "usbdev": [{"type": "host", "vendor": "046d", "product": "c077", "peer": "a:1"}],
}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [path] if isinstance(value, str) else []
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))]


@pytest.mark.parametrize("path", leaves(PLAIN), ids=str)
def test_no_pattern_lets_a_newline_through(path: tuple[str | int, ...]) -> None:
    decode(PLAIN)
    body = msgspec.json.decode(msgspec.json.encode(PLAIN))
    at = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] += "\n"
    with pytest.raises(ConfigError):
        decode(body)


@pytest.mark.parametrize("name", [".", "..", ".x", "-x", "a/b", "", "a b", "é", "x" * 65, "a\nb"])
def test_names_that_would_harm_paths_or_command_lines(name: str) -> None:
    with pytest.raises(ConfigError):
        decode({"name": name})


def test_the_table_and_the_model_agree() -> None:
    assert set(KEYS) == set(DomainConfig.__struct_fields__)
    parts = {f"disk.{field}" for field in Disk.__struct_fields__}
    parts |= {f"vif.{field}" for field in Vif.__struct_fields__}
    parts |= {f"vif.forward.{field}" for field in Forward.__struct_fields__}
    parts |= {f"p9.{field}" for field in Share.__struct_fields__}
    parts |= {f"pci.{field}" for field in PciDevice.__struct_fields__}
    parts |= {f"usbdev.{field}" for field in UsbDevice.__struct_fields__}
    assert set(PARTS) == parts
    assert expected("nonsense") is None


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: str(key.name))
def test_examples_are_right_and_choices_complete(key: Any) -> None:
    assert key.example.startswith(f"{key.name} = ")
    loaded = load_text(f'image = "tiny"; type = "hvm"; memory = 64; maxmem = 9216\n{key.example}', "x.cfg")
    usual = getattr(DomainConfig(name=""), key.name)
    assert getattr(loaded.config, key.name) != usual
    for choice in key.choices:
        value: Any = [choice] if key.name == "usbdevice" else choice
        decode({"name": "x", key.name: value})
    if isinstance(usual, Enum):
        assert key.choices == tuple(type(usual))
    elif key.choices:
        assert f"({'|'.join(key.choices)})" in str(schema()["$defs"]["DomainConfig"]["properties"][key.name])


def test_the_schema_describes_every_key() -> None:
    definitions = schema()["$defs"]
    for struct in ("DomainConfig", "Disk", "Vif", "Forward"):
        for field in definitions[struct]["properties"].values():
            assert field["description"]
    assert definitions["DomainConfig"]["required"] == ["name"]
    for pattern in re.findall(r"'pattern': '([^']*)'", str(definitions)):
        assert "\\Z" not in pattern


def test_the_reference_page_has_every_key() -> None:
    page = reference_markdown()
    assert page.startswith("# ")
    for key in KEYS:
        assert f"| `{key}` |" in page
    assert GENERAL in page
    assert "`hap`" in page
