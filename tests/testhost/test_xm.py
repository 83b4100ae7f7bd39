"""The hypervisor as a user meets it: xend and xm in the test host, with engine=xen."""

from __future__ import annotations

from pathlib import Path

from tests.testhost import play

_SCRIPT = r"""
set -e
xm() { python -m pyxen.xm "$@"; }
python -m pyxen.xend start
truncate -s 16M /disk.img
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner engine=xen memory=192 vcpus=2 \
  disk=file:/disk.img,xvda,w
tries=0
until grep -q '~# ' /run/xend/domains/1/console.log; do
  tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5
done
echo 'cat /sys/hypervisor/type; echo cpus=$(nproc); echo kept | dd of=/dev/xvda conv=fsync 2>/dev/null; echo done-$?' |
  xm console --drain 3 inner
xm pause inner
xm list inner
xm unpause inner
kill -9 $(cat /run/xend/xend.pid)
sleep 1
python -m pyxen.xend start
xm list inner
xm shutdown -w --timeout 600 inner
head -c 4 /disk.img
xm log
"""


def test_a_domain_lives_and_is_adopted_as_under_qemu(files: dict[str, Path]) -> None:
    output = play(_SCRIPT, files)
    assert "Started domain inner (id=1)" in output
    assert "\nxen\ncpus=2\ndone-0\n" in output
    assert "--p---" in output
    assert "Domain inner terminated" in output
    assert "\nkept" in output
    for line in (
        "domain started domid=1 name=inner paused=False engine=xen",
        "domain adopted domid=1",
        "reason=poweroff",
    ):
        assert line in output
