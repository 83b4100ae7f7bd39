"""Orders for a running domain of the Xen engine, through xm: VCPUs, memory, SysRq, cores."""

from __future__ import annotations

import json
from pathlib import Path

from tests.testhost import play

_PRELUDE = r"""
set -e
xm() { python -m pyxen.xm "$@"; }
create() { xm create kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner engine=xen "$@"; }
try() { # until the command succeeds
  tries=0
  until "$@"; do
    tries=$((tries + 1))
    [ $tries -lt 2000 ] || { echo "never: $*"; tail -n 40 $(log); exit 9; }
    sleep 0.25
  done
}
log() { ls -d /run/xend/domains/*/console.log; }
prompt() { try grep -q '~# ' $(log); }
type() { echo "$1" >$(ls /run/xend/domains/*/console.in); }
said() { grep -q "^$1" $(log); }
guest() { # type a line, wait for a word that it prints at the beginning of a line
  type "$1"
  try said "$2"
  echo "guest: $2"
}
has() { xm list inner | tail -n 1 | awk '{ print $'$1' }' | grep -qx -- "$2"; }
python -m pyxen.xend start
"""


_VCPUS = r"""
create memory=192 vcpus=1 maxvcpus=4
prompt
has 4 1
guest 'echo at-first-$(cat /sys/devices/system/cpu/online)' at-first-0
guest 'for n in 1 2; do (while [ ! -e /run/stop ]; do :; done) & done; echo busy-now' busy-now
step=0
for count in 4 2 4; do
  step=$((step + 1))
  xm vcpu-set inner $count
  try has 4 $count
  guest "echo step-$step-\$(nproc)-\$(cat /sys/devices/system/cpu/online)" "step-$step-$count-0-$((count - 1))"
done
guest 'touch /run/stop; echo idle-again' idle-again
xm vcpu-set inner 3
try has 4 3
kill -9 $(cat /run/xend/xend.pid)
sleep 1
python -m pyxen.xend start
has 4 3
xm vcpu-list inner
xm vcpu-set inner 5 2>&1 || echo refused
xm destroy inner
"""


def test_vcpus_come_and_go_while_the_guest_works(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _VCPUS, files)
    assert [line.split()[2:5] for line in output.splitlines() if line.startswith("inner ")][-1] == ["3", "-", "--p"]
    assert "at most 4 VCPUs while it runs, not 5" in output
    assert "refused" in output


_MANY_VCPUS = r"""
xm create kernel=/vmlinux ramdisk=/ramdisk cmdline="quiet lpj=10000000" name=inner engine=xen \
  memory=384 vcpus=1 maxvcpus=32
prompt
guest 'for n in 1 2; do (while [ ! -e /run/stop ]; do :; done) & done; echo busy-now' busy-now
for count in 32 1; do
  xm vcpu-set inner $count
  began=$(cut -d. -f1 /proc/uptime)
  try has 4 $count
  echo "== $count after $(($(cut -d. -f1 /proc/uptime) - began)) s"
  guest "echo count-\$(nproc)-\$(grep -c ^processor /proc/cpuinfo)" "count-$count-$count"
done
guest 'touch /run/stop; dmesg | grep -E "B[U]G|Call T[r]ace|soft l[o]ckup|detected s[t]all"; echo idle-again' idle-again
cat $(log) | grep -E 'B[U]G|Call T[r]ace|soft l[o]ckup|detected s[t]all' || echo quiet
xm destroy inner
"""


def test_from_one_vcpu_to_32_and_back_under_load(files: dict[str, Path]) -> None:
    """Without ``lpj`` each VCPU measures its delay loop by timer ticks, which takes seconds here.

    The console has what is typed as well: the pattern doesn't find itself.
    """
    output = play(_PRELUDE + _MANY_VCPUS, files)
    print(*[line for line in output.splitlines() if line.startswith("== ")], sep="\n")
    assert "\nquiet\n" in output, output


_MEMORY = r"""
create memory=128 maxmem=256
prompt
try has 3 128
type 'echo total-$(awk "/MemTotal/ { print \$2 }" /proc/meminfo)'
try said total-
xm mem-set inner 96
try has 3 96
xm mem-set inner 256m
try has 3 256
type 'echo again-$(awk "/MemTotal/ { print \$2 }" /proc/meminfo)'
try said again-
grep -E '^(total|again)-' $(log)
xm mem-max inner 200 2>&1 || echo refused-max
xm mem-set inner 160
xm mem-max inner 200
xm mem-set inner 201 2>&1 || echo refused-set
xm mem-set inner 200
try has 3 200
xm io-weight inner 300
cat /sys/fs/cgroup/pyxen/*/io.weight
xm destroy inner
"""


def test_memory_shrinks_and_grows(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _MEMORY, files)
    total, again = (int(line.split("-")[1]) for line in output.splitlines() if line.startswith(("total-", "again-")))
    assert again - total == 128 << 10, output
    assert "refused-max" in output
    assert "\ndefault 300\n" in output, output
    assert "at most 200 MiB, not 201" in output


_CORE = r"""
create memory=160 vcpus=2
prompt
guest 'echo 0123456789abcdef0123 | tee /run/marker | sed s/^/marker-/' marker-0123
xm dump-core inner /whole.core
xm dump-core -L inner /live.core
xm trigger inner nmi
type 'echo nmis-$(awk "/^ *NMI:/ { print \$2 + \$3 }" /proc/interrupts)'
try said nmis-
grep '^nmis-' $(log)
xm trigger inner init 2>&1 || echo refused
for core in /whole.core /live.core; do
  python -m tests.testhost.cores $core 0123456789abcdef0123
  echo blocks-$(stat -c %b $core)
done
xm dump-core --crash inner
ls /var/lib/xend/dump
xm list
"""


def test_cores_and_triggers(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _CORE, files)
    cores = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(cores) == 2, output
    for core in cores:
        assert core["memory"][0] == [0, 160 << 20]
        assert core["notes"] == [["CORE", 1, 336], ["QEMU", 0, 440]] * 2
        assert all(rip >> 47 for rip in core["rip"]), "both VCPUs are in the kernel, idle"
        assert core["word"]
    blocks = [int(line.split("-")[1]) for line in output.splitlines() if line.startswith("blocks-")]
    assert max(blocks) * 512 < 160 << 20, "pages of zeros are holes"
    assert "\nnmis-2\n" in output
    assert "cannot trigger init" in output
    assert "inner-1-" in output
    assert not [line for line in output.splitlines() if line.startswith("inner ")], "it is destroyed after its dump"


_CRASH = r"""
create memory=128 on_crash=coredump-restart cmdline="quiet sysrq_always_enabled"
prompt
xm sysrq inner h
try grep -q 'sysrq: HELP' $(log)
xm sysrq inner c
try has 2 2
prompt
python -m tests.testhost.cores /var/lib/xend/dump/inner-1-*.core 'sysrq: Trigger a crash'
xm trigger inner reset
try has 2 3
"""


def test_a_crash_by_sysrq_dumps_and_restarts(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _CRASH, files)
    (core,) = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert core["word"], "the kernel's log is in its core"
    assert core["notes"]


_HUGE = r"""
pool=/sys/kernel/mm/hugepages/hugepages-2048kB
refused=0; create memory=128 hugepages=2m 2>&1 || refused=$?
echo "== refused $refused"
echo 64 > $pool/nr_hugepages
create memory=128 hugepages=2m
prompt
echo "== left $(($(cat $pool/free_hugepages) - $(cat $pool/resv_hugepages)))"
xm mem-set inner 112
try has 3 112
guest 'echo still-$((1 + 1))' still-2
xm destroy inner
echo "== left $(cat $pool/free_hugepages)"
"""


def test_a_domain_in_huge_pages(files: dict[str, Path]) -> None:
    output = play(_PRELUDE + _HUGE, files)
    assert "'inner' needs 64 huge pages of 2M, the host has 0 left" in output
    said = [line for line in output.splitlines() if line.startswith("== ")]
    assert said == ["== refused 1", "== left 0", "== left 64"]
