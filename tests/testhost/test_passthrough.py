"""PCI devices for real: a test host with an IOMMU, whose spare network cards go to a domain and come back.

The domain's guest gets an address by DHCP over each: what it sends and receives has gone through VFIO and the IOMMU.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.testhost import image, run

_CARD = "virtio-net-pci,disable-legacy=on,iommu_platform=on,romfile="
_DEVICES = (
    *("-netdev", "user,id=first", "-netdev", "user,id=second,net=10.3.0.0/24"),
    *("-device", f"{_CARD},netdev=first,addr=0x10.0,multifunction=on,mac=52:54:00:00:00:01"),
    *("-device", f"{_CARD},netdev=second,addr=0x10.1,mac=52:54:00:00:00:02"),
)
PRELUDE = r"""
set -e
for module in /modules/*; do insmod $module 2>/dev/null || true; done # one may be there
fail() {
  echo "never: $*"
  cat /run/xend/domains/*/console.log /run/xend/domains/*/stderr | tail -n 60
  cat /var/lib/xend/xend.log
  dmesg | tail -n 40
  exit 9
}
try() {
  tries=0
  until "$@"; do
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || fail "$@"
    ! grep -q "domain ended" /var/lib/xend/xend.log || fail "$@"
    sleep 0.25
  done
}
said() { grep -q "$1" /run/xend/domains/*/console.log; }
guest() { echo "$1" >$(ls /run/xend/domains/*/console.in); try said "$2"; echo "guest: $2"; }
"""
_SCRIPT = (
    PRELUDE
    + r"""
driver() { basename $(readlink /sys/bus/pci/devices/0000:00:$1/driver); }
refuse() { if xm "$@"; then fail "no error: $*"; fi; }
xend start
xm pci-list-assignable-devices --all
ifconfig eth0 up
refuse pci-assignable-add 00:10.0
ifconfig eth0 down
xm pci-assignable-add 00:10.0
echo "drivers: $(driver 10.0) $(driver 10.1)"
echo "assignable: $(xm pci-list-assignable-devices)"
set -- create type=hvm kernel=/vmlinuz ramdisk=/ramdisk cmdline=quiet name=inner memory=192 vga=none
refuse "$@" pci=00:10.0
xm pci-assignable-add 00:10.1
kill -9 $(cat /run/xend/xend.pid)
sleep 1
xend start
xm "$@" pci=00:10.0
try said '~# '
xm pci-list inner
group=$(basename $(readlink /sys/bus/pci/devices/0000:00:10.0/iommu_group))
echo "owner: $(stat -c %u /dev/vfio/$group)"
grep Max.locked /proc/$(cat /run/xend/domains/*/pid)/limits
guest 'ip addr | grep -c "52:54:00:00:00:01" | sed s/^/cards-/' cards-1
guest 'until ip addr | grep -q 10.0.2.15; do sleep 1; done; echo address-$((1 + 1))' address-2
refuse save inner /saved
refuse pci-assignable-remove 00:10.0
xm pci-attach inner 00:10.1 1e
guest 'until ip addr | grep -q 10.3.0.15; do sleep 1; done; echo second-$((1 + 1))' second-2
xm pci-list inner
xm pci-detach inner 00:10.1
guest 'ip addr | grep -c "52:54:00:00:00:02" | sed s/^/left-/' left-0
refuse pci-assignable-remove 00:10.1
echo "owner: $(stat -c %u /dev/vfio/$group)"
xm destroy inner
echo "owner: $(stat -c %u /dev/vfio/$group)"
# Both from the start, in a machine with root ports, and in its next life.
: >/var/lib/xend/xend.log
xm "$@" hdtype=ahci pci=00:10.0 pci=00:10.1
try said '~# '
guest 'until ip addr | grep -q 10.3.0.15; do sleep 1; done; echo express-$((1 + 1))' express-2
xm pci-list inner
xm pci-detach inner 00:10.1
guest 'ip addr | grep -c "52:54:00:00:00:02" | sed s/^/left-/' left-0
xm pci-attach inner 00:10.1
guest 'until ip addr | grep -q 52:54:00:00:00:02; do sleep 1; done; echo back-$((1 + 1))' back-2
xm reboot -w inner
try said '~# '
guest 'until ip addr | grep -q 10.3.0.15; do sleep 1; done; echo again-$((1 + 1))' again-2
xm destroy inner
xm pci-assignable-remove 00:10.0 00:10.1
echo "drivers: $(driver 10.0) $(driver 10.1)"
"""
)


def programs() -> dict[str, Path]:
    """What QEMU and xend need besides, to run a whole PC."""
    found = {str(path): path for path in Path("/usr/share/qemu").glob("*.bin")}
    found |= {f"/usr/share/seabios/{path.name}": path for path in Path("/usr/share/seabios").glob("bios*.bin")}
    programs = [Path(shutil.which(name) or name) for name in ("prlimit", "env")]  # busybox's env changes no folder
    modules = sorted(Path("/usr/lib").glob("*/qemu/hw-usb-host.so"))
    found |= {str(path): path for path in [*modules, *image.libraries([*programs, *modules])]}
    return found | {f"/usr/bin/{program.name}": program for program in programs}


@pytest.fixture
def vfio(tmp_path: Path) -> dict[str, Path]:
    """The modules that the test host needs more than others, in the order in which they can be loaded."""
    kernel = image.kernel()
    found = {}
    for place, module in enumerate(kernel.modules.closure(["vfio_pci", "vfio_iommu_type1", "virtio_net"])):
        path = tmp_path / module.name
        path.write_bytes(module.data)
        found[f"/modules/{place:02d}-{module.name}"] = path
    return found


def test_a_card_goes_to_a_domain_and_comes_back(files: dict[str, Path], vfio: dict[str, Path]) -> None:
    files = {"/vmlinuz": image.kernel().vmlinuz, "/ramdisk": files["/ramdisk"], **programs(), **vfio}
    done = run(["sh", "-c", _SCRIPT], files=files, iommu=_DEVICES)
    output = done.output.replace("\r", "")
    assert done.status == 0, f"{output}\n{done.console}"
    card = "0000:00:10.0 (network controller 1af4:1041)"
    for said in (
        f"Error: {card} is in use by the host: network interface eth0 is up",
        "drivers: vfio-pci virtio-pci\nassignable: 0000:00:10.0\n",
        "shares IOMMU group 2 with 0000:00:10.1 (network controller 1af4:1041), which the host has: its driver",
        "\nowner: 200002\nMax locked memory         1275068416 ",
        "Error: 'inner' has the host's PCI device 0000:00:10.0, whose state can't be read",
        f"Error: {card} is in use by domain 'inner'\n",
        "Vdev Device\n05.0 0000:00:10.0\n1e.0 0000:00:10.1\n",
        "guest: left-0\nError: IOMMU group 2, in which 0000:00:10.1 is, is in use by process ",
        "\nowner: 200002\nowner: 0\n",
        "guest: express-2\nVdev Device\n20.0 0000:00:10.0\n21.0 0000:00:10.1\nguest: left-0\nguest: back-2\n",
        "guest: again-2\ndrivers: virtio-pci virtio-pci\n",
    ):
        assert said in output, f"{said}\n{output}"
