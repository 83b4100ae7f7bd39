"""Copies of disks: QEMU lets go of them when they are whole, and what has failed is never taken for one."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyxen.config.model import Disk, DiskFormat
from pyxen.engine.contract import Limits
from pyxen.engine.qemu import copying
from pyxen.errors import Conflict, EngineError
from tests.unit.engine.test_qemu_orders import Lab, lab

__all__ = ["lab"]
pytestmark = pytest.mark.anyio
DISK = Disk(vdev="xvda", target="/srv/a.img", format=DiskFormat.RAW)


def job(status: str, **more: object) -> dict[str, Any]:
    return {"id": "copy-xvda", "status": status, "current-progress": 10, "total-progress": 40, **more}


class Jobs:
    """QEMU's jobs: the copy concludes when it is cancelled, and goes when it is dismissed."""

    def __init__(self, lab: Lab, status: str = "ready", **more: object) -> None:
        self._lab = lab
        self._status = status
        self._more = more

    def __call__(self) -> list[dict[str, Any]]:
        told = [name for name, _ in self._lab.monitor.orders]
        if "job-dismiss" in told:
            return [{"id": "somebody's", "status": "running"}]
        status = "concluded" if "block-job-cancel" in told else self._status
        return [{"id": "somebody's", "status": "running"}, job(status, **(self._more if status == "concluded" else {}))]


def told(lab: Lab, *names: str) -> list[tuple[str, dict[str, Any]]]:
    return [order for order in lab.monitor.orders if order[0] in names]


async def test_disks_that_are_closed_are_not_copied(lab: Lab) -> None:
    lab.monitor.answers["query-status"] = {"status": "postmigrate"}
    with pytest.raises(Conflict, match="has closed its disks"):
        await lab.domain(disk=(DISK,)).copy_disk("xvda", None)
    assert not told(lab, "blockdev-add")


async def test_a_copy_begins_as_a_mirror_to_the_disks_own_socket(lab: Lab) -> None:
    lab.monitor.answers["query-status"] = {"status": "running"}
    await lab.domain(disk=(DISK,)).copy_disk("xvda", 1 << 20)
    ((_, node),) = told(lab, "blockdev-add")
    assert node["server"] == {"type": "unix", "path": "copy-xvda"}
    assert (node["export"], node["node-name"]) == ("xvda", "copy-xvda")
    ((_, mirror),) = told(lab, "blockdev-mirror")
    assert (mirror["device"], mirror["sync"], mirror["auto-dismiss"], mirror["speed"]) == (
        "xvda.0",
        "full",
        False,
        1 << 20,
    )


@pytest.mark.parametrize(("status", "alike"), [("running", False), ("ready", True)])
async def test_how_far_it_is(lab: Lab, status: str, alike: bool) -> None:
    lab.monitor.answers["query-jobs"] = [job(status)]
    assert await lab.domain().copies() == (10, 40, alike)


async def test_one_that_has_failed_is_no_copy(lab: Lab) -> None:
    lab.monitor.answers["query-jobs"] = [job("concluded", error="No space left on device")]
    with pytest.raises(EngineError, match="disk xvda can't be copied: No space left on device"):
        await lab.domain().copies()


def migrating(lab: Lab) -> None:
    def status() -> dict[str, Any]:
        return {"status": "completed" if told(lab, "migrate-continue") else "pre-switchover"}

    lab.monitor.answers |= {
        "query-migrate": status,
        "query-named-block-nodes": [{"node-name": "xvda.0"}, {"node-name": "copy-xvda"}],
    }


async def test_the_guests_state_waits_for_its_disks(lab: Lab) -> None:
    migrating(lab)
    lab.monitor.answers["query-jobs"] = Jobs(lab)
    seen: list[list[str]] = []
    out, into = os.pipe()
    domain = lab.domain(disk=(DISK,))
    await domain.send_live(
        into, Limits(), lambda _: None, lambda: seen.append([name for name, _ in lab.monitor.orders])
    )
    os.close(out)
    os.close(into)
    ((_, capabilities),) = told(lab, "migrate-set-capabilities")
    assert {"capability": "pause-before-switchover", "state": True} in capabilities["capabilities"]
    assert told(lab, "block-job-cancel") == [("block-job-cancel", {"device": "copy-xvda"})], "all is written first"
    assert told(lab, "blockdev-del") == [("blockdev-del", {"node-name": "copy-xvda"})]
    (before,) = seen
    assert before[-1] == "blockdev-del"
    assert "migrate-continue" not in before


@pytest.mark.parametrize("when", ["before", "at the end"])
async def test_no_state_goes_after_a_disk_that_has_not(lab: Lab, when: str) -> None:
    migrating(lab)
    failed = Jobs(lab, "concluded" if when == "before" else "ready", error="Input/output error")
    lab.monitor.answers["query-jobs"] = failed
    out, into = os.pipe()
    with pytest.raises(EngineError, match="Input/output error"):
        await lab.domain(disk=(DISK,)).send_live(into, Limits(), lambda _: None, lambda: None)
    os.close(out)
    os.close(into)
    assert not told(lab, "migrate-continue")
    assert told(lab, "migrate_cancel")


async def test_what_is_abandoned_is_let_go_at_once(lab: Lab) -> None:
    migrating(lab)
    lab.monitor.answers["query-jobs"] = Jobs(lab, "running")
    await lab.domain(disk=(DISK,)).abandon_copies()
    names = [name for name, _ in lab.monitor.orders if not name.startswith("query")]
    assert names == ["migrate_cancel", "block-job-cancel", "job-dismiss", "blockdev-del"]
    assert told(lab, "block-job-cancel") == [("block-job-cancel", {"device": "copy-xvda", "force": True})]


async def test_disks_are_served_in_the_domains_folder(lab: Lab) -> None:
    await copying.serve(lab.directory, ["xvda", "xvdb"])
    (_, server), *exports = lab.monitor.orders
    assert server == {"addr": {"type": "unix", "data": {"path": "copies.sock"}}}
    assert [(export["node-name"], export["name"], export["writable"]) for _, export in exports] == [
        ("xvda.0", "xvda", True),
        ("xvdb.0", "xvdb", True),
    ]
