"""The hypervisor with a KVM that works: Debian's kernel, unmodified, as a PVH domain inside of the test host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.testhost import run

_PROMPT = "~# "


def boot(files: dict[str, Path], **order: Any) -> dict[str, Any]:
    """Run one domain to its end; how it went, as tests.testhost.guest tells it."""
    done = run(["python", "-m", "tests.testhost.guest", json.dumps(order)], files=files)
    assert done.status == 0, f"{done.output}\n{done.console}"
    found: dict[str, Any] = json.loads(done.output)
    assert found["status"] == 0, found["stderr"]
    return found


def end(found: dict[str, Any]) -> dict[str, Any]:
    """The event of the guest's end; what it did with its VCPUs may be told after it."""
    ends: list[dict[str, Any]] = [
        event for event in found["events"] if event.get("event") in ("SHUTDOWN", "GUEST_PANICKED")
    ]
    assert ends, found
    return ends[0]


def test_a_kernel_boots_to_a_shell_and_switches_off(files: dict[str, Path]) -> None:
    words = [
        [_PROMPT, "cat /sys/hypervisor/type /sys/hypervisor/guest_type /sys/hypervisor/uuid"],
        [_PROMPT, "dmesg | grep -c 'Booting kernel on Xen PVH'; cat /proc/cmdline"],
        [_PROMPT, "sleep 1 && echo slept"],
        [_PROMPT, "poweroff"],
    ]
    found = boot(files, type=words)
    console = found["console"].replace("\r", "")
    assert "\nxen\nPVH\n00000000-0000-0000-0000-000000000007\n" in console, console
    assert "\n1\nconsole=hvc0 quiet\n" in console, console
    assert "\nslept\n" in console, console
    assert end(found)["data"] == {"guest": True, "reason": "guest-shutdown"}
    assert not found["stderr"]


def test_several_vcpus_and_a_disk(files: dict[str, Path]) -> None:
    words = [
        [_PROMPT, "nproc; cat /sys/block/xvda/size"],
        [
            _PROMPT,
            "dd if=/bin/busybox of=/dev/xvda bs=64k conv=fsync; cmp -n 1000000 /bin/busybox /dev/xvda && echo same",
        ],
        [_PROMPT, "reboot"],
    ]
    disk = {"vdev": "xvda", "target": "/disk.img", "format": "raw"}
    found = boot(files, config={"vcpus": 3, "disk": [disk]}, type=words)
    console = found["console"].replace("\r", "")
    assert "\n3\n131072\n" in console, console
    assert "\nsame\n" in console, console
    assert end(found)["data"] == {"guest": True, "reason": "guest-reset"}


def test_a_panic_is_a_crash(files: dict[str, Path]) -> None:
    found = boot(files, type=[[_PROMPT, "echo c > /proc/sysrq-trigger"]])
    assert end(found)["event"] == "GUEST_PANICKED", found["console"]


def test_the_unit_tests_pass_on_a_real_kvm() -> None:
    done = run(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/hypervisor/kvm"])
    assert done.status == 0, f"{done.output}\n{done.console}"
    assert "skipped" not in done.output
