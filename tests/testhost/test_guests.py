"""Guests that are unusual, many or hostile, in the test host: what one does must be no other's concern.

Each boot of the test host costs most of a minute, so a few of them serve for everything here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyxen.image import tiny
from pyxen.image.kernel import unpack
from tests.testhost import guests, image, run

_PROMPT = "~# "


@pytest.fixture(scope="module")
def files(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With kernels of a few instructions beside Debian's."""
    place = tmp_path_factory.mktemp("guests")
    for name, elf in (("counter", guests.counter()), ("crasher", guests.crasher()), ("hostile", guests.hostile())):
        (place / name).write_bytes(elf)
    return {**files, **{f"/{path.name}": path for path in place.iterdir()}}


def check_messages(text: str) -> None:
    """What a kernel has printed from its start on is what it prints on Xen, and nothing that alarms."""
    assert "Booting kernel on Xen PVH" in text, text
    bad = [
        line for line in text.splitlines() if re.search(r"\bWARN|\bBUG\b|Call Trace|Oops|stack trace|Unhandled", line)
    ]
    assert not bad, "\n".join(bad)


def test_eight_domains_do_not_notice_each_other(files: dict[str, Path]) -> None:
    found = _guest(["python", "-m", "tests.testhost.many"], files)
    assert found["domains"] == ["Domain-0", "counter1", "counter2", "counter4", "hostile", "linux1", "linux2"]
    assert "restarting too fast" in found["log"], "a domain that always crashes was started again and again"
    assert "Traceback" not in found["stderr"]
    for name in ("linux1", "linux2", "counter1", "counter2", "counter4"):
        assert found["after"][name] > found["before"][name], f"{name} has stopped"
    assert set(found["logs"]["counter1"].splitlines()[:-1]) == {guests.LINE.decode().strip()}
    for name, clock in (("linux1", "xen"), ("linux2", "tsc")):
        log = found["logs"][name].replace("\r", "")
        check_messages(log)
        assert f"\n{clock}\n" in log, log
        sums = re.findall(r"^([0-9a-f]{32})  /bin/busybox$", log, re.MULTILINE)
        assert len(set(sums)) == 1, f"{name} has computed {set(sums)}"


def test_a_32_bit_kernel(tmp_path: Path) -> None:
    """On shadow page tables: TCG's own walk marks entries of PAE's first level, which KVM then finds broken."""
    kernel, busybox = image.kernel_32()
    place = tmp_path / "ramdisk"
    place.write_bytes(tiny.make_ramdisk(kernel.modules, busybox=busybox))
    unpacked = unpack(kernel.vmlinuz, image.BUILD / "kernels")
    assert unpacked.bits == 32
    disk = {"vdev": "xvda", "target": "/disk.img", "format": "raw"}
    copy = "dd if=/bin/busybox of=/dev/xvda bs=64k conv=fsync; cmp -n 1000000 /bin/busybox /dev/xvda && echo same"
    words = [[_PROMPT, f"uname -m; cat /sys/hypervisor/guest_type; {copy}"], [_PROMPT, "poweroff"]]
    order = {"cmdline": "console=hvc0", "config": {"disk": [disk], "vcpus": 2}, "type": words}
    script = "rmmod kvm_amd && insmod /lib/modules/$(uname -r)/kvm_amd.ko npt=0 && exec python -m tests.testhost.guest "
    found = _guest(["sh", "-c", f'{script} "$0"', json.dumps(order)], {"/vmlinux": unpacked.vmlinux, "/ramdisk": place})
    console = found["console"].replace("\r", "")
    check_messages(console)
    assert "\ni686\nPVH\n" in console, console
    assert "\nsame\n" in console, console
    assert _end(found) == {"guest": True, "reason": "guest-shutdown"}
    assert not found["stderr"]


def test_32_vcpus(files: dict[str, Path]) -> None:
    """Without ``lpj`` each of them measures its delay loop by timer ticks, which takes seconds here.

    A kernel leaves that out where the CPU's counter is known to be steady, as KVM says on all but emulated hosts.
    """
    words = [[_PROMPT, "nproc"], [_PROMPT, "poweroff"]]
    config = {"vcpus": 32, "memory": 384}
    order = {"cmdline": "console=hvc0 lpj=10000000", "config": config, "type": words}
    found = _guest(["python", "-m", "tests.testhost.guest", json.dumps(order)], files)
    console = found["console"].replace("\r", "")
    check_messages(console)
    assert "\n32\n" in console, console
    assert _end(found) == {"guest": True, "reason": "guest-shutdown"}
    assert not found["stderr"]


def _guest(command: list[str], files: dict[str, Path]) -> dict[str, Any]:
    done = run(command, files=files)
    assert done.status == 0, f"{done.output}\n{done.console}"
    found: dict[str, Any] = json.loads(done.output[done.output.index("{") :])
    return found


def _end(found: dict[str, Any]) -> object:
    """How the guest ended; what it did with its VCPUs is told too, some of it afterwards."""
    return [event["data"] for event in found["events"] if event.get("event") == "SHUTDOWN"][-1]
