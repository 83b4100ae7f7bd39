"""Seeing into a running domain: xm debug-trace and the xenstore commands, with Debian's kernel in the test host."""

from __future__ import annotations

import json
from pathlib import Path

from tests.testhost import play

_SCRIPT = r"""
set -e
xm() { python -m pyxen.xm "$@"; }
python -m pyxen.xend start
xm create -p kernel=/vmlinux ramdisk=/ramdisk cmdline=quiet name=inner engine=xen memory=192
sockets() { ls -l /proc/$(cat /run/xend/domains/1/pid)/fd | grep -c socket: || true; }
before=$(sockets)
xm debug-trace inner --format json > /boot.trace &
tracer=$!
tries=0
until [ $(sockets) -gt $before ]; do # it has one to the hypervisor
  tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.2
done
xm unpause inner
tries=0
until grep -q '~# ' /run/xend/domains/1/console.log; do
  tries=$((tries + 1)); [ $tries -lt 1000 ]; sleep 0.5
done
echo "== tree"
xm xenstore-ls -p /local/domain
echo "== watch"
xm xenstore-watch -n 2 /local/domain/1/data > /watch &
watcher=$!
tries=0
while kill -0 $watcher 2>/dev/null; do
  tries=$((tries + 1)); [ $tries -lt 1000 ]
  xm xenstore-write /local/domain/1/data/note 'two\x01words'
  sleep 0.2
done
cat /watch
xm xenstore-read /local/domain/1/data/note
echo "== count"
xm debug-trace inner --only hypercall --count 200 > /two-hundred
grep -c ' = ' /two-hundred
echo "== summary"
xm debug-trace inner --summary --count 200
echo "== alive"
echo 'echo alive-$((6 * 7))' | xm console --drain 3 inner
xm shutdown -w --timeout 600 inner
wait $tracer
echo "== boot"
cat /boot.trace
"""


def test_a_domain_is_seen_into_and_lives_on(files: dict[str, Path]) -> None:
    output = play(_SCRIPT, files)
    parts = dict(part.split("\n", 1) for part in output.split("== ")[1:])
    assert '\n name = "inner"' in parts["tree"]
    assert '\n  shutdown = ""' in parts["tree"]
    assert "(n0,r1)" in parts["tree"]
    # Linux has said what it understands.
    assert '  feature-poweroff = "1"' in parts["tree"]
    assert parts["watch"] == "/local/domain/1/data\n/local/domain/1/data/note\ntwo\\001words\n"
    assert int(parts["count"]) == 200
    assert "set_singleshot_timer" in parts["summary"]
    assert "\nalive-42\n" in parts["alive"]
    records = [json.loads(line) for line in parts["boot"].splitlines()]
    names = {(record["kind"], record.get("op") or record.get("name")) for record in records}
    assert {
        ("hypercall", "get_features"),
        ("hypercall", "add_to_physmap"),
        ("hypercall", "bind_virq"),
        ("hypercall", "set_singleshot_timer"),
        ("event", "raise"),
        ("timer", "expired"),
        ("port", "out"),
        ("xenstore", "watch"),
    } <= names
    assert not [record for record in records if record["kind"] == "lost"]
    assert records[-1] == {"kind": "end", "name": "poweroff"}
