"""The jail of a domain's process, in the test host: Debian's kernel lives in it, and root sees what is left to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testhost import play, run

_START = r"""
set -e
xm() { python -m pyxen.xm "$@"; }
prompt() {
  tries=0
  until [ $(grep -c '~# ' /run/xend/domains/$1/console.log) -ge 1 ]; do
    tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5
  done
}
python -m pyxen.xend start
truncate -s 16M /disk.img
chmod 600 /disk.img
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner engine=xen memory=192 vcpus=2 \
  disk=file:/disk.img,xvda,w on_crash=preserve 2>&1
pid=$(cat /run/xend/domains/1/pid)
prompt 1
"""
_LOOK = r"""
echo "== status"; grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/$pid/status
echo "== root"; ls -a /proc/$pid/root/
echo "== namespaces"; for each in mnt net ipc uts; do
  [ $(readlink /proc/1/ns/$each) != $(readlink /proc/$pid/ns/$each) ] && echo own-$each
done
echo "== files"; for each in /proc/$pid/fd/*; do readlink $each; done
echo "== cgroup"; group=/sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup); cat $group/memory.max $group/pids.max
echo "== scheduling"; xm sched-credit -d inner -w 512 -c 80; cat $group/cpu.weight $group/cpu.max
xm vcpu-pin inner 1 0 - && xm vcpu-list inner | tail -n 2 | cut -c 33-44
echo "== seen"; xm list --format json inner
echo 'dd if=/dev/urandom of=/dev/xvda bs=64k count=100 conv=fsync && blkdiscard -o 4194304 -l 4194304 /dev/xvda;' \
  'echo disk-$?' | xm console --drain 5 inner
xm pause inner
xm list inner
xm unpause inner
echo poweroff | xm console --drain 1 inner
tries=0
until [ ! -e /run/xend/domains/1 ]; do tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5; done
echo "== end"; ls /sys/fs/cgroup/pyxen; echo log; xm log
"""
_UNIT = """
export TMPDIR=/tmp/$1; mkdir -m 777 $TMPDIR
python -c 'import os, sys; uid = int(sys.argv[1]); os.setgroups([]); os.setresgid(uid, uid, uid);
os.setresuid(uid, uid, uid); os.execvp(sys.argv[2], sys.argv[2:])' $1 \
  python -m pytest -q -p no:cacheprovider tests/unit/hypervisor/jail tests/unit/engine/test_xen.py
"""
_REBOOT = r"""
echo 'echo kept | dd of=/dev/xvda conv=fsync; reboot' | xm console --drain 1 inner
tries=0
until [ -e /run/xend/domains/2/pid ]; do tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5; done
prompt 2
echo 'dd if=/dev/xvda bs=5 count=1 2>/dev/null; echo c > /proc/sysrq-trigger' | xm console --drain 8 inner || true
tries=0
until xm list inner | grep -q -e '----c-'; do tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5; done
xm destroy inner
"""


def test_a_domain_lives_in_its_jail(files: dict[str, Path]) -> None:
    before, *parts = play(_START + _LOOK, files).split("== ")
    part = {title: text for title, _, text in (each.partition("\n") for each in parts)}
    assert before.splitlines()[1:] == ["Started domain inner (id=1)"]  # and no warning
    status = dict(line.split(":\t", 1) for line in part["status"].splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["200001"] * 4
    assert status["Groups"].split() == []
    assert {status[key] for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert part["root"].split() == [".", ".."]
    assert part["namespaces"].split() == ["own-mnt", "own-net", "own-ipc", "own-uts"]
    own = {"/null", "/kvm", "/disk.img"}
    own |= {f"/run/xend/domains/1/{name}" for name in ("console.in", "console.log", "events", "stderr")}
    # A path in a mount that the process has left behind begins there.
    assert {path.removeprefix("/dev") for path in part["files"].split() if path.startswith("/")} == own
    assert part["cgroup"].split() == [str((192 + 3 + 512) << 20), "258"]
    # On a host with one CPU all that can be seen of pinning is that it finds the VCPU's thread in the jail.
    assert part["scheduling"].split() == ["200", "80000", "100000", "1", "0", "1", "1"]
    assert all(f'"{layer}"' in part["seen"] for layer in ("user", "empty root", "landlock", "seccomp", "memory limit"))
    assert "\ndisk-0\n" in part["seen"]
    assert "--p---" in part["seen"]
    groups, _, log = part["end"].partition("log\n")
    assert all(name.startswith(("cgroup.", "cpu.", "memory.", "pids.", "io.")) for name in groups.split()), groups
    assert "reason=poweroff" in log


def test_it_reboots_and_crashes_there(files: dict[str, Path]) -> None:
    output = play(_START + _REBOOT, files)
    assert "\nkept\n" in output


@pytest.mark.parametrize("uid", [0, 1000], ids=["root", "ordinary"])
def test_the_unit_tests_pass_there(uid: int) -> None:
    """On Debian's kernel, whoever starts the process; nothing of them needs a KVM that runs whole kernels."""
    done = run(["sh", "-c", _UNIT, "sh", str(uid)])
    assert done.status == 0, f"{done.output}\n{done.console}"
    assert " passed" in done.output
