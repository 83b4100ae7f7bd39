"""Devices of the Xen engine that come, grow, are saved and restored, and go: one guest, through xm and its agent."""

from __future__ import annotations

from pathlib import Path

from tests.testhost import play

_SCRIPT = r"""
set -e
end() { [ $? = 0 ] || { tail -n 40 /run/xend/domains/*/console.log /run/xend/domains/*/stderr; xm log; } }
trap end EXIT
at() { echo "-- $1 at second $(cut -d. -f1 /proc/uptime)"; }
guest() { xm exec --wait 300 inner sh -c "$1"; }
ip link add br0 type bridge
echo 0 >/sys/class/net/br0/bridge/forward_delay
# Its address would change with its ports, and the guest goes on with the one that it knows.
ip link set br0 address 00:16:3e:00:01:00
ip addr add 10.1.0.1/24 dev br0
ip link set br0 up
ip route add default via 10.1.0.2
xend start
truncate -s 8M /raw.img
qemu-img create -q -f qcow2 /layer.qcow2 8M
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner memory=192
guest 'echo up-now'
at booted

xm block-attach inner /raw.img,raw,xvdb,w
xm block-attach inner /layer.qcow2,qcow2,xvdc,w
xm network-attach inner bridge=br0 mac=00:16:3e:00:00:07
xm network-attach inner forward=2222:22
xm block-list inner
xm network-list inner
guest 'for name in xvdb xvdc; do
  until [ -b /dev/$name ]; do sleep 0.2; done
  dd if=/dev/urandom of=/run/$name bs=64k count=8 2>/dev/null
  dd if=/run/$name of=/dev/$name bs=64k conv=fsync 2>/dev/null && echo $name-written
done
until [ -e /sys/class/net/eth1 ]; do sleep 0.2; done
ip addr add 10.1.0.3/24 dev eth0; ip link set eth0 up; ping -c 2 10.1.0.1'
at plugged

xm block-resize inner xvdb 16M
xm block-resize inner xvdc 16M
guest 'for name in xvdb xvdc; do
  until [ $(cat /sys/block/$name/size) = 32768 ]; do sleep 0.2; done
  echo end-of-$name | dd of=/dev/$name bs=512 seek=32767 conv=fsync 2>/dev/null && echo $name-grown
done'
at grown

xm block-limit inner xvdb --rate 1MB/s
xm network-limit inner 0 100KB/s
guest 'echo 3 >/proc/sys/vm/drop_caches
took() { read before _ </proc/uptime; "$@"; read after _ </proc/uptime; echo $1-took $before $after; }
took dd if=/dev/xvdb of=/dev/null bs=64k count=48 2>/dev/null
took ping -q -c 30 -i 0.01 -s 10000 10.1.0.1 >/run/pinged; tail -n 1 /run/pinged'
xm block-limit inner xvdb --rate none
xm network-limit inner 0 none
at limited

xm save -c inner /checkpoint
guest 'echo goes-on-$(cat /sys/block/xvdc/size)'
at saved

xm pause inner
! xm save inner /state || exit 8
xm unpause inner
xm save inner /state
xm restore /state
guest 'sync; echo 3 >/proc/sys/vm/drop_caches
for name in xvdb xvdc; do head -c 524288 /dev/$name | cmp - /run/$name && echo $name-kept; done
ping -c 2 10.1.0.1 | tail -n 2
(until ip -4 -o addr show dev eth1 | grep -q 10.0.2.15; do udhcpc -i eth1 -n -q -S -s /etc/dhcp; done) >/dev/null 2>&1
ip -4 -o addr show dev eth1 | grep -o 10.0.2.15/24'
at restored
ping -c 2 10.1.0.3 | tail -n 2
xm block-list inner
xm network-list inner

xm block-detach inner xvdb
xm network-detach inner 1
guest 'ls /dev/xvdb /sys/class/net/eth1; echo detached'
mknod /fifo p
xm exec inner sh -c 'exec 3</dev/xvdc; echo open; sleep 1000' >/fifo &
read -r word </fifo
xm block-detach --force inner xvdc
xm network-detach --force inner 00:16:3e:00:00:07
xm block-list inner
xm network-list inner
at detached
xm block-attach inner /raw.img,raw,xvdb,w
guest 'until [ -b /dev/xvdb ]; do sleep 0.2; done; head -c 524288 /dev/xvdb | cmp - /run/xvdb && echo there-again'
# xvdc was taken away, and Linux 6.1 complains of its console when it is restored.
guest 'dmesg | grep -E "WARN|BUG|I/O error" | grep -v -e evtchn_put -e xvdc | sed "s/^/complaint: /"; echo looked'
xm shutdown -w --timeout 300 inner
tail -c 512 /raw.img | head -n 1
qemu-img convert -f qcow2 -O raw /layer.qcow2 /layer.img
tail -c 512 /layer.img | head -n 1
ps | grep -c '[/]monitor' || true
xm log
"""


def test_devices_come_grow_live_on_in_a_restored_guest_and_go(files: dict[str, Path]) -> None:
    output = play(_SCRIPT, files, memory_mib=2560)
    lines = output.splitlines()
    for name in ("xvdb", "xvdc"):
        for word in (f"{name}-written", f"{name}-grown", f"{name}-kept", f"end-of-{name}"):
            assert word in lines, output
    for word in ("goes-on-32768", "detached", "there-again", "looked", "10.0.2.15/24"):
        assert word in lines, output
    assert output.count("2 packets transmitted, 2 packets received, 0% packet loss") == 3, output
    assert "complaint: " not in output, output
    for what, at_least in (("dd", 1.5), ("ping", 0.5)):
        _, began, ended = next(line for line in lines if line.startswith(f"{what}-took ")).split()
        assert float(ended) - float(began) > at_least, "a busy machine makes it slower, never faster"
    assert "'inner' is paused, so it can't put itself in order" in output, output
    assert lines[lines.index("end-of-xvdc") + 1] == "0", "processes are left"
