"""Random and mutated files against the reader: it must load them or raise ConfigError, and do so quickly.

``python -m tests.unit.config.fuzz 200000 [SEED]`` runs so many and prints what came out.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

from pyxen.config.build import load_text
from pyxen.config.classic import ALIASES, WITHOUT_EFFECT
from pyxen.config.keys import KEYS
from pyxen.config.render import render
from pyxen.errors import ConfigError

BASE = Path("/base")
SEEDS = [path.read_text() for path in sorted((Path(__file__).parents[3] / "examples").glob("*.cfg"))]
SEEDS.append("\n".join(key.example for key in KEYS.values()))

PIECES = [
    *(f"\n{key} = " for key in (*KEYS, *ALIASES, *WITHOUT_EFFECT)),
    *("0", "1", "-1", "0644", "256L", "0x1f", "1.5", "1e999", "None", "True", "2**63", "99999999999999999999", "'2G'"),
    *("[", "]", "(", ")", "{", "}", ",", ";", "=", "+", "-", "*", "//", "%", ".", ":", "\\", "\\\n", "\n", " ", "\t"),
    *("'", '"', '"""', "'''", "#", "\0", "\r", "\f", "\ufeff", "\u2028", "é", "\U0001f980", "\ud800", "\\ud800"),
    *("%s", "%d", "%99999d", "%(a)s", "%%", "import os", "lambda: ", "if 1: ", "for a in b: ", "f'{x}'", "a.b", "a()"),
    *("'file:/a,xvda,w'", "'phy:x,hda,r'", "',hdc:cdrom,r'", "'target=/x'", "'vdev=xvda,target=/,'", "'tap:vhd:/x'"),
    *("''", "'mac=00:16:3e:00:00:01'", "'forward=1:2+udp:3:4'", "'rate=1MB/s'", "'type=ioemu'", "'pv'", "'hvm'"),
    *("* 99999", "'a' * 60000", "[[", "(((((", "----", "not ", "name", "memory"),
]


VALUES = [
    *("0", "1", "2", "-1", "7", "64", "512", "0644", "1.5", "True", "None", "'1'", "'2G'", "'yes'", "''", "[]", "()"),
    *("'pvh'", "'hvm'", "'linux'", "'ovmf'", "'auto'", "'kvm'", "'restart'", "'always'", "'ahci'", "'c'", "'dc'"),
    *("'tiny'", "'/k'", "'k'", "'hvmloader'", "'a b'", "'ip=1'", "'127.0.0.1'", "'0.0.0.0:3'", "'1.2.3.400'", "'dhcp'"),
    *("['pty']", "'pty'", "'none'", "['tablet', 'mouse']", "'tablet'", "[1]", "[[]]", "['']", "['vnc=1,vncdisplay=2']"),
    *("['file:/a,xvda,w']", "['/a,,hda', ',hdc:cdrom,r']", "['/a,,xvda'] * 2", "['phy:x,xvda1,r']", "['format=qcow2']"),
    *("['vdev=xvda,target=%s' % 'a,b']", "['mac=00:16:3e:00:00:%02x' % 9]", "['forward=1:2+udp:3:4,rate=1MB/s']"),
    *("'0-3,^1'", "'nodes:0'", "[0, 1]", "['0', 'all', '']", "'3-1'"),
    *("['type=ioemu']", "['bridge=br0,ip=1']", "'6c1c0fe2-1f6a-4b66-a6c1-2c2a1f0a4f11'", "'x' * 4097", "'é\\n\\x7f'"),
]


def assortment(dice: random.Random) -> str:
    """A file without syntax errors, whose values may suit their keys or not."""
    lines = [dice.choice(("image = 'tiny'", "kernel = '/k'", "type = 'hvm'", "builder = 'hvm'", "name = 'x'"))]
    for _ in range(dice.choice((1, 2, 4, 8))):
        key = dice.choice((*KEYS, *KEYS, *ALIASES, *dice.sample(list(WITHOUT_EFFECT), 5)))
        suitable = key in KEYS and dice.random() < 0.5
        lines.append(KEYS[key].example if suitable else f"{key} = {dice.choice(VALUES)}")
    dice.shuffle(lines)
    return "\n".join(lines)


def mutant(dice: random.Random) -> str:
    """A file without syntax errors, a valid file with a few random edits, or text put together at random."""
    if dice.random() < 0.5:
        return assortment(dice)
    text = dice.choice(SEEDS) if dice.random() < 0.8 else ""
    for _ in range(dice.choice((1, 1, 2, 3, 5, 10, 40))):
        start = dice.randint(0, len(text))
        end = min(len(text), start + dice.choice((0, 0, 1, 1, 2, 5, 20)))
        match dice.randrange(5):
            case 0:
                piece = ""
            case 1:
                piece = chr(dice.choice((dice.randrange(128), dice.randrange(0x3000))))
            case 2:
                other = dice.choice(SEEDS)
                cut = dice.randrange(len(other))
                piece = other[cut : cut + dice.randrange(40)]
            case _:
                piece = dice.choice(PIECES) * dice.choice((1, 1, 1, 1, 2, 50))
        text = text[:start] + piece + text[end:]
    return text


def attempt(text: str, overrides: tuple[str, ...] = ()) -> str:
    """Load ``text``; ``loaded`` or the complaint's gist. What loads must survive being written and read again."""
    try:
        config, warnings, _ = load_text(text, "fuzz.cfg", overrides, base=BASE)
    except ConfigError as error:
        assert error.message and len(str(error)) < 2000
        assert error.source
        assert error.column is None or (error.column >= 1 and error.line is not None and error.line >= 1)
        return error.message.split("'")[0][:30]
    assert all(warning.isprintable() and len(warning) < 500 for warning in warnings)
    assert load_text(render(config), "again.cfg").config == config
    return "loaded"


def main(count: int, seed: int) -> None:
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    begin = time.perf_counter()
    for number in range(count):
        text = mutant(dice)
        start = time.perf_counter()
        try:
            outcomes[attempt(text)] += 1
        except BaseException:
            print(f"number {number} of seed {seed}: {text!r}", file=sys.stderr)
            raise
        slowest = max(slowest, (time.perf_counter() - start, text))
    took = time.perf_counter() - begin
    print(f"{count} files in {took:.0f} s; slowest {slowest[0] * 1000:.0f} ms, {len(slowest[1])} characters")
    for outcome, times in outcomes.most_common(15):
        print(f"{times:8} {outcome}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
