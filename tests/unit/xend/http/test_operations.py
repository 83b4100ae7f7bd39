"""Requests and responses, as a client sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxen import api, scheduling_api
from pyxen.errors import ConfigError, InvalidRequest
from pyxen.xend.http.operation import MAX_BODY_BYTES, whole_number
from tests.unit.xend.http.fake_core import FakeCore

pytestmark = pytest.mark.anyio


def problem(response: httpx2.Response) -> api.Problem:
    """The problem that a response holds, checked to agree with its status."""
    assert response.headers["content-type"] == "application/problem+json"
    found = msgspec.json.decode(response.content, type=api.Problem)
    assert found.status == response.status_code
    return found


async def test_a_domain_from_creation_to_deletion(client: httpx2.AsyncClient) -> None:
    created = await client.post("/v1/domains", json={"config": {"name": "web", "memory": 64}, "managed": True})
    assert created.status_code == 201
    domain = msgspec.json.decode(created.content, type=api.Domain)
    assert (domain.name, domain.memory_mib, domain.managed) == ("web", 64, True)
    for ref in ("web", str(domain.domid), domain.uuid):
        assert (await client.get(f"/v1/domains/{ref}")).json()["uuid"] == domain.uuid
    assert (await client.post("/v1/domains/web/pause")).json()["power_state"] == "paused"
    assert (await client.post("/v1/domains/web/unpause")).json()["power_state"] == "running"
    assert (await client.post("/v1/domains/web/suspend")).json()["power_state"] == "suspended"
    assert (await client.post("/v1/domains/web/resume")).json()["power_state"] == "running"
    shutdown = await client.post("/v1/domains/web/shutdown", json={"reason": "reboot"})
    assert (shutdown.status_code, shutdown.json()["power_state"]) == (202, "shutdown")
    assert (await client.post("/v1/domains/web/destroy")).json()["power_state"] == "halted"
    assert (await client.post("/v1/domains/web/start", json={"paused": True})).json()["power_state"] == "paused"
    assert (await client.post("/v1/domains/web/rename", json={"name": "www"})).json()["name"] == "www"
    assert (await client.get("/v1/domains/www/vcpus")).json()["vcpus"][0]["time_s"] == 1.5
    deleted = await client.delete("/v1/domains/www")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert problem(await client.get("/v1/domains/www")).code == "not-found"


async def test_orders_for_running_domains(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    for verb, body, status in [
        ("set-vcpus", {"count": 2}, 202),
        ("set-vcpus", {"count": 0}, 400),
        ("set-memory", {"memory_mib": 64}, 202),
        ("set-memory", {"memory_mib": "64M"}, 400),
        ("set-maxmem", {"maxmem_mib": 512}, 200),
        ("attach-disk", {"disk": {"vdev": "xvdb", "target": "/srv/a.img"}}, 200),
        ("attach-disk", {"disk": {"vdev": "b", "target": "/srv/a.img"}}, 400),
        ("detach-disk", {"vdev": "xvdb"}, 404),
        ("change-disc", {"vdev": "hdc"}, 200),
        ("change-disc", {"vdev": "hdc", "target": "cd.iso"}, 400),
        ("resize-disk", {"vdev": "xvdb", "size_bytes": 512}, 200),
        ("resize-disk", {"vdev": "xvdb", "size_bytes": 0}, 400),
        ("limit-disk", {"vdev": "xvdb", "rate": 1000}, 200),
        ("limit-disk", {"vdev": "xvdb", "rate": -1}, 400),
        ("limit-vif", {"vif": "0", "rate": 0}, 200),
        ("limit-vif", {"vif": "0"}, 400),
        ("attach-vif", {"vif": {}}, 200),
        ("attach-vif", {"vif": {"mac": "1"}}, 400),
        ("detach-vif", {"vif": "0", "force": True}, 200),
        ("attach-pci", {"pci": {"address": "0000:03:00.0"}}, 200),
        ("attach-pci", {"pci": {"address": "03:00.0"}}, 400),
        ("detach-pci", {"pci": "0000:03:00.0"}, 200),
        ("attach-usb", {"usb": {"type": "disk", "target": "/srv/a.img"}}, 200),
        ("attach-usb", {"usb": {"type": "floppy"}}, 400),
        ("detach-usb", {"usb": "0"}, 200),
        ("pin-vcpus", {"vcpu": 0, "cpus": "0-3,^1", "cpus_soft": "all"}, 200),
        ("pin-vcpus", {"cpus": "9"}, 400),
        ("pin-vcpus", {"cpus": "0;1"}, 400),
        ("set-credit", {"weight": 512, "cap": 0}, 200),
        ("set-credit", {"weight": 0}, 400),
        ("set-io-weight", {"weight": 10000}, 200),
        ("set-io-weight", {"weight": 0}, 400),
        ("sysrq", {"key": "s"}, 202),
        ("sysrq", {"key": "ss"}, 400),
        ("trigger", {"trigger": "nmi", "vcpu": 0}, 202),
        ("trigger", {"trigger": "init"}, 422),
        ("trigger", {"trigger": "fire"}, 400),
        ("dump-core", {"path": "/core"}, 200),
        ("dump-core", {"path": "core"}, 400),
        ("save", {"path": "/web.saved"}, 200),
        ("save", {"path": "web.saved"}, 400),
        ("save", {}, 400),
    ]:
        answer = await client.post(f"/v1/domains/web/{verb}", json=body)
        assert answer.status_code == status, (verb, body, answer.text)
    assert (await client.post("/v1/domains/web/dump-core")).json()["name"] == "web"
    assert (await client.get("/v1/domains/web")).json()["memory_mib"] == 64
    assert (await client.get("/v1/domains/web/devices")).json()["disks"] == []


async def test_devices_of_the_host(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/pci-devices")).json()["problem"] == "this host has no IOMMU"
    assert (await client.get("/v1/usb-devices")).json() == {"devices": []}
    assert problem(await client.post("/v1/pci-devices/0000:03:00.0/make-assignable")).code == "unsupported"
    assert (await client.post("/v1/pci-devices/0000:03:00.0/give-back")).status_code == 204
    assert problem(await client.post("/v1/pci-devices/x/give-back")).code == "not-found"


async def test_cpu_pools(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    for path, body, status in [
        ("cpupools", {"name": "fast", "cpus": "1"}, 201),
        ("cpupools", {"name": "fast"}, 409),
        ("cpupools", {"name": "a/b"}, 400),
        ("cpupools/fast/add-cpus", {"cpus": "1"}, 200),
        ("cpupools/slow/add-cpus", {"cpus": "1"}, 404),
        ("domains/web/set-pool", {"pool": "fast"}, 200),
        ("domains/web/set-pool", {"pool": "slow"}, 404),
        ("cpupools/fast/remove-cpus", {"cpus": "1"}, 200),
        ("split-cpupools", None, 409),
    ]:
        answer = await client.post(f"/v1/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
    assert [pool["name"] for pool in (await client.get("/v1/cpupools")).json()["pools"]] == ["Pool-0", "fast"]
    assert (await client.delete("/v1/cpupools/fast")).status_code == 204
    assert (await client.delete("/v1/cpupools/fast")).status_code == 404


async def test_snapshots_and_clones(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    for path, body, status in [
        ("snapshots", {"name": "base"}, 201),
        ("snapshots", {"name": "base"}, 409),
        ("snapshots", {"name": "../base"}, 400),
        ("snapshots/base/revert", {"paused": True}, 200),
        ("snapshots/none/revert", None, 404),
        ("clone", {"name": "two", "snapshot": "base"}, 201),
        ("clone", {"name": "two"}, 409),
        ("clone", {"name": "three", "snapshot": "none"}, 404),
    ]:
        answer = await client.post(f"/v1/domains/web/{path}", json=body)
        assert answer.status_code == status, (path, body, answer.text)
    for path in ("/v1/snapshots", "/v1/domains/web/snapshots"):
        assert [each["name"] for each in (await client.get(path)).json()["snapshots"]] == ["base"]
    assert (await client.delete("/v1/domains/web/snapshots/base")).status_code == 204
    assert (await client.delete("/v1/domains/web/snapshots/base")).status_code == 404
    assert (await client.get("/v1/domains/none/snapshots")).status_code == 404


async def test_the_list_begins_with_domain_0(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("b")
    core.add("a")
    response = await client.get("/v1/domains")
    assert [each["name"] for each in response.json()["domains"]] == ["Domain-0", "a", "b"]
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "struct"),
    [
        ("/v1/host", api.Host),
        ("/v1/host/topology", api.HostTopology),
        ("/v1/version", api.Version),
        ("/v1/cpupools", scheduling_api.CpuPoolList),
        ("/v1/images", api.ImageList),
        ("/v1/domains", api.DomainList),
    ],
)
async def test_what_is_sent_can_be_decoded(client: httpx2.AsyncClient, path: str, struct: type[Any]) -> None:
    response = await client.get(path)
    assert response.headers["content-type"] == "application/json"
    msgspec.json.decode(response.content, type=struct)


async def test_a_body_may_be_left_out_where_all_has_defaults(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.add("web")
    assert (await client.post("/v1/domains/web/start")).json()["power_state"] == "running"
    assert problem(await client.post("/v1/domains/web/rename")).detail == "the request has no body"


async def test_head_is_get_without_a_body(client: httpx2.AsyncClient) -> None:
    assert (await client.head("/v1/version")).status_code == 200


async def test_debug_keys_are_pressed(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/debug-keys", json={"keys": "q"})).status_code == 204
    for keys in ("x", "", "q\n", "q" * 33):
        assert (await client.post("/v1/debug-keys", json={"keys": keys})).status_code == 400


async def test_dmesg_is_text(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/dmesg")
    assert response.text == "(XEN) hello\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


# Errors


async def test_an_unknown_path(client: httpx2.AsyncClient) -> None:
    found = problem(await client.get("/v2/domains"))
    assert (found.status, found.detail) == (404, "there is nothing at /v2/domains")


async def test_a_wrong_method_names_the_right_ones(client: httpx2.AsyncClient) -> None:
    response = await client.put("/v1/domains", json={})
    assert problem(response).status == 405
    assert response.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("body", "detail", "key"),
    [
        ({"config": {"name": "web", "memory": "much"}}, "memory: expected int, got str", "memory"),
        ({"config": {"memory": 64}}, "object missing required field name", None),
        ({"config": {"name": "web", "disk": [{"vdev": "zz"}]}}, "disk[0].vdev: expected str", "disk[0].vdev"),
        ({"config": {"name": "web"}, "pausd": True}, "object contains unknown field pausd", None),
        ({"config": {"name": "web"}, "paused": 1}, "paused: expected bool, got int", None),
    ],
)
async def test_a_wrong_body_is_told_by_its_key(
    client: httpx2.AsyncClient, body: object, detail: str, key: str | None
) -> None:
    found = problem(await client.post("/v1/domains", json=body))
    assert found.status == 400
    assert found.detail.startswith(detail)
    assert found.key == key


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"\xff\xfe", b'{"config": {"name": "\\ud800"}}', b"[" * 100_000, b'{"config":' * 50_000, b"null"],
)
async def test_what_is_no_json_is_the_callers_fault(client: httpx2.AsyncClient, raw: bytes) -> None:
    response = await client.post("/v1/domains", content=raw, headers={"content-type": "application/json"})
    assert problem(response).status == 400


async def test_the_label_of_a_body(client: httpx2.AsyncClient) -> None:
    raw = json.dumps({"config": {"name": "web"}}).encode()

    async def send(kind: str) -> httpx2.Response:
        return await client.post("/v1/domains", content=raw, headers={"content-type": kind})

    assert problem(await send("text/xml")).status == 415
    assert (await send("application/x-www-form-urlencoded")).status_code == 201
    assert (await send("application/merge-patch+json; charset=utf-8")).status_code == 409


async def test_a_large_body_is_refused(client: httpx2.AsyncClient) -> None:
    async def chunks() -> Any:
        for _ in range(MAX_BODY_BYTES // 65536 + 1):
            yield b" " * 65536

    for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
        assert problem(await client.post("/v1/domains", content=content)).status == 413


async def test_a_config_error_keeps_its_key(client: httpx2.AsyncClient, core: FakeCore) -> None:
    core.failure = ConfigError("there is no such kernel", key="kernel", hint="Give its path.")
    found = problem(await client.get("/v1/domains"))
    assert (found.code, found.key, found.hint) == ("invalid-config", "kernel", "Give its path.")


async def test_the_unexpected_is_logged_not_told(
    client: httpx2.AsyncClient, core: FakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    core.failure = ZeroDivisionError("secret")
    response = await client.get("/v1/domains")
    assert problem(response).code == "internal"
    assert "secret" not in response.text
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize("ref", ["9" * 6000, "%00", "%ff", "..", "%0a", "a%20b", "ü"])
async def test_odd_names_are_only_unknown(client: httpx2.AsyncClient, ref: str) -> None:
    assert problem(await client.get(f"/v1/domains/{ref}")).status == 404


@pytest.mark.parametrize("value", ["", "-1", "1e3", "x", "9" * 30, "٣"])
async def test_odd_numbers_are_refused(client: httpx2.AsyncClient, value: str) -> None:
    assert problem(await client.get("/v1/log", params={"tail": value})).status == 400
    assert problem(await client.get("/v1/events", params={"after": value})).status == 400


@given(st.text(max_size=30) | st.integers().map(str))
def test_whole_number_takes_whole_numbers_alone(text: str) -> None:
    try:
        assert 0 <= whole_number(text, "it") < 2**63
    except InvalidRequest as error:
        assert str(error).startswith("it is ")
    else:
        assert text.isascii()
        assert text.isdigit()


# The log


async def test_the_log_and_its_tail(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    assert (await client.get("/v1/log")).content == b""
    (tmp_path / "xend.log").write_bytes(b"".join(b"line %d\n" % number for number in range(30_000)))
    assert len((await client.get("/v1/log")).content.splitlines()) == 30_000
    assert (await client.get("/v1/log", params={"tail": 2})).text == "line 29998\nline 29999\n"
    assert (await client.get("/v1/log", params={"tail": 0})).content == b""
