"""Disks and networks of the Xen engine under load, and a suspension in the midst of it: one guest, through xm."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.testhost import play

_MIB = 1 << 20

_PRELUDE = r"""
set -e
fail() {
  echo "never: $*"
  cat /run/xend/domains/*/console.log /run/xend/domains/*/stderr | tail -n 60
  cat /var/lib/xend/xend.log
  exit 9
}
try() { # until the command succeeds; not for ever, nor when the domain has gone
  tries=0
  until "$@"; do
    tries=$((tries + 1))
    [ $tries -lt 2000 ] || fail "$@"
    ! grep -q "domain ended" /var/lib/xend/xend.log || fail "$@"
    sleep 0.25
  done
}
log() { cat /run/xend/domains/*/console.log 2>/dev/null; }
at_prompt() { log | grep -q '~# '; }
prompt() { try at_prompt; }
type() { echo "$1" >$(ls /run/xend/domains/*/console.in); }
said() { log | grep -q "^$1"; }
guest() { # type a line, wait for a word that it prints at the beginning of a line
  type "$1"
  try said "$2"
  echo "guest: $2"
}
ip link add br0 type bridge
ip addr add 10.1.0.1/24 dev br0
ip link set br0 up
ip route add default via 10.1.0.2
xend start
"""

_DISKS = r"""
truncate -s 96M /raw.img
qemu-img create -q -f qcow2 /layer.qcow2 64M
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner memory=256 vcpus=2 \
  disk=/raw.img,raw,xvda,w disk=/layer.qcow2,qcow2,xvdb,w disk=/random,raw,xvdc,r
xm list inner
prompt
# 64 MiB of random data, from a disk that another wrote, over xvda to the host's file.
guest 'dd if=/dev/xvdc of=/dev/xvda bs=1M conv=fsync 2>/dev/null && echo copied-$?' copied-0
guest 'sha256sum /dev/xvdc | sed "s/^/sum-/"' sum-
# Several writers and readers at once on both disks, each with its own part, each comparing. Not dd for what is random:
# a suspension cuts its reads short.
cat >/load <<'LOAD'
worker() { # disk, first MiB, name
  head -c 3145728 /dev/urandom >/run/$3
  for round in 1 2 3; do
    dd if=/run/$3 of=/dev/$1 bs=4k seek=$(($2 * 256)) conv=notrunc,fsync 2>/dev/null || return 1
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/$1 bs=4k skip=$(($2 * 256)) count=768 2>/dev/null | cmp - /run/$3 || return 1
  done
  echo "$3" >>/run/good
}
for n in 0 1 2; do worker xvda $((80 + 4 * n)) raw$n & worker xvdb $((10 * n)) layer$n & done
wait
echo load-$(wc -l </run/good)
LOAD
guest "echo $(base64 -w0 /load) | base64 -d >/run/load; echo there-now" there-now
type 'sh /run/load'
sleep 2
xm suspend inner
xm list inner
sleep 3
xm resume inner
try said load-6
echo "guest: load-6"
guest 'blkdiscard /dev/xvdb && echo discarded-$?' discarded-0
guest 'dmesg | grep -cE "WARN|BUG|Call Trace|I/O error|blk_update" | sed "s/^/complaints-/"' complaints-0
type reboot
try grep -q restarted /var/lib/xend/xend.log
prompt
guest 'head -c 67108864 /dev/xvda | sha256sum | sed "s/^/again-/"' again-
xm shutdown -H -w --timeout 600 inner
head -c 67108864 /raw.img | sha256sum
xm log
"""

_NETWORK = r"""
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner memory=448 vif=forward=2222:22 \
  vif=bridge=br0,mac=00:16:3e:00:00:07
prompt
guest 'sleep 5; ip -4 -o addr show dev eth0 | grep -o "10.0.2.15/24" | sed "s/^/lease-/"' lease-10.0.2.15
type 'nc -lp 22 -e sha256sum &'
sleep 1
guest 'ip addr add 10.1.0.3/24 dev eth1; ip link set eth1 up; ping -c 3 10.1.0.1; echo pinged-$?' pinged-0
ping -c 3 10.1.0.3
# 100 MB each way over the bridge.
cat /random /half >/both
httpd -p 10.1.0.1:80 -h /
guest 'wget -q -O /run/both http://10.1.0.1/both; sha256sum </run/both | sed "s/^/got-/"' got-
log | grep ^got-
guest 'httpd -p 80 -h /run; echo served-$?' served-0
wget -q -O /back http://10.1.0.3/both
wc -c </back
sha256sum </back
# Through the user-mode network, from loopback.
echo hello | nc -w 20 127.0.0.1 2222
echo hello | sha256sum
guest 'dmesg | grep -cE "WARN|BUG|Call Trace" | sed "s/^/complaints-/"' complaints-0
xm shutdown -w --timeout 600 inner
xm log
"""


@pytest.fixture(scope="module")
def files(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With random data beside the kernel and the ramdisk."""
    place = tmp_path_factory.mktemp("data")
    (place / "random").write_bytes(random.Random(7).randbytes(64 * _MIB))
    (place / "half").write_bytes(random.Random(8).randbytes(36 * _MIB))
    return {**files, **{f"/{name}": place / name for name in ("random", "half")}}


def test_disks_keep_what_was_written_under_load_over_a_suspension_and_a_reboot(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _DISKS, files, memory_mib=2560)
    digest = hashlib.sha256(files["/random"].read_bytes()).hexdigest()
    for word in ("copied-0", "load-6", "discarded-0", "complaints-0"):
        assert f"guest: {word}\n" in output, output
    assert f"{digest}  -\n" in output, output
    assert "---s--" in output, output
    for word in ("domain suspended", "domain resumed", "reason=reboot", "domain restarted"):
        assert word in output, output


def test_networks_carry_a_hundred_megabytes_each_way(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _NETWORK, files, memory_mib=2560)
    lines = output.splitlines()
    sent = hashlib.sha256(files["/random"].read_bytes() + files["/half"].read_bytes()).hexdigest()
    assert f"got-{sent}  -" in lines, output
    assert str(100 * _MIB) in lines, output
    assert f"{sent}  -" in lines, output
    hello = hashlib.sha256(b"hello\n").hexdigest()
    assert lines.count(f"{hello}  -") == 2, output
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in output
