"""Programs in the small part of Python that is compiled: what they compute is what Python computes."""

from __future__ import annotations

import os
import random
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxen.abi.agent import Kind
from pyxen.image.native import compiler, language
from pyxen.image.native.language import (
    copy,
    load8,
    load16,
    load32,
    load64,
    static,
    store8,
    store32,
    store64,
    syscall,
    text,
)
from pyxen.xend.agent_frames import HEADER, Frame
from tests.unit.xend.agents import start_at

NUMBERS = static(8 * 64)
COPY = static(64)
BIG = 0x1234_5678_9ABC_DEF0
SEVEN = 7


def run(tmp_path: Path, main: Callable[[int], int], *words: str) -> subprocess.CompletedProcess[bytes]:
    program = tmp_path / "program"
    program.write_bytes(compiler.build(main))
    program.chmod(0o755)
    return subprocess.run([program, *words], capture_output=True, timeout=60, check=False)


def collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
        if steps > 1000:
            break
    return steps


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def mix(a: int, b: int, c: int) -> int:
    if (a > b and not c) or a <= -5:
        return a - b * c
    if a == b or (b >= c and a != 3):
        return (a & 0xFF) ^ (b | c) << 3
    return ~a + -b + (c >> 2)


def odd_sum(limit: int) -> int:
    total = 0
    n = 0
    while True:
        n += 1
        if n > limit:
            break
        if n & 1 == 0:
            continue
        total += n
    return total


def n0() -> int:
    return 0


def report(index: int, value: int) -> None:
    store64(NUMBERS + 8 * index, value)


def computing(stack: int) -> int:
    report(0, collatz(27))
    report(1, fibonacci(15))
    report(2, mix(5, 3, 0))
    report(3, mix(-7, 2, 3))
    report(4, mix(9, 9, 2))
    report(5, mix(3, 4, 100))
    report(6, odd_sum(10))
    report(7, BIG)
    report(8, -BIG)
    report(9, (0 or SEVEN) + (2 and 3) + (n0() and 1))
    report(10, compiler._PAGE)  # an attribute of a module
    syscall(1, 1, NUMBERS, 8 * 11)
    return 0


def test_it_computes_as_python_does(tmp_path: Path) -> None:
    expected = [
        *(collatz(27), fibonacci(15), mix(5, 3, 0), mix(-7, 2, 3), mix(9, 9, 2), mix(3, 4, 100), odd_sum(10)),
        *(BIG, -BIG, 10, 4096),
    ]
    done = run(tmp_path, computing)
    found = [int.from_bytes(done.stdout[at : at + 8], "little", signed=True) for at in range(0, len(done.stdout), 8)]
    assert (done.returncode, found) == (0, expected)


def remembering(stack: int) -> int:
    """Stores and loads of each width, the stack that Linux leaves, and constant bytes."""
    store64(NUMBERS, -1)
    store32(NUMBERS + 2, 0x11223344)
    copy(COPY, NUMBERS, 16)
    if load8(COPY + 2) != 0x44 or load16(COPY) != 0xFFFF or load32(COPY + 4) != 0xFFFF1122 or load64(COPY + 8) != 0:
        return 1
    store8(COPY, 300)
    if load8(COPY) != 44:
        return 2
    if load64(stack) != 2 or load8(load64(stack + 16)) != 120:
        return 3
    syscall(1, 2, text(b"words\n"), 6)
    return 42


def test_memory_and_system_calls(tmp_path: Path) -> None:
    done = run(tmp_path, remembering, "x")
    assert (done.returncode, done.stderr) == (42, b"words\n")


def test_random_expressions(tmp_path: Path) -> None:
    """Whole functions made of nothing but a deep expression, against Python's own value of it."""
    rng = random.Random(7)

    def expression(depth: int) -> str:
        if depth == 0:
            return rng.choice(("a", "b", str(rng.randrange(-100, 100))))
        left, right = expression(depth - 1), expression(depth - 1)
        kind = rng.randrange(9)
        if kind == 0:
            return f"({left} if {right} else {left})"
        if kind == 1:
            return f"(-{left})"
        return f"({left} {rng.choice(('+', '-', '&', '|', '^', '<', '>=', '=='))} {right})"

    lines = ["from pyxen.image.native.language import static, store64, syscall", "OUT = static(512)"]
    texts = [expression(6) for _ in range(40)]
    for number, each in enumerate(texts):
        lines += [f"def f{number}(a: int, b: int) -> int:", f"    return {each}"]
    lines += ["def main(stack: int) -> int:"]
    lines += [f"    store64(OUT + {8 * number}, f{number}({number}, -3))" for number in range(len(texts))]
    lines += [f"    syscall(1, 1, OUT, {8 * len(texts)})", "    return 0"]
    module = tmp_path / "made.py"
    module.write_text("\n".join(lines))
    names: dict[str, object] = {"__name__": "made"}
    exec(compile(module.read_text(), str(module), "exec"), names)  # noqa: S102
    main = names["main"]
    assert callable(main)
    done = run(tmp_path, main)
    for number, each in enumerate(texts):
        value = int(eval(each, {"a": number, "b": -3}))  # noqa: S307
        found = int.from_bytes(done.stdout[8 * number : 8 * number + 8], "little", signed=True)
        assert found == value, each


def with_a_list(stack: int) -> int:
    return len([stack])


def with_a_keyword(stack: int) -> int:
    return mix(a=stack, b=1, c=1)


def with_too_few(stack: int) -> int:
    return mix(stack, 1)  # type: ignore[call-arg]


def with_an_unknown_name(stack: int) -> int:
    return undefined  # type: ignore[name-defined,no-any-return]  # noqa: F821


def with_a_fraction(stack: int) -> int:
    return stack / 2  # type: ignore[return-value]


@pytest.mark.parametrize("main", [with_a_list, with_a_keyword, with_too_few, with_an_unknown_name, with_a_fraction])
def test_what_is_not_in_the_language_is_refused(main: Callable[[int], int]) -> None:
    with pytest.raises(compiler.NotInTheLanguage, match=main.__name__):
        compiler.build(main)


def test_python_itself_says_that_it_cannot() -> None:
    with pytest.raises(NotImplementedError):
        load8(0)
    assert len({language.static(8), language.static(8)}) == 2, "two of the same size are two"


def test_the_agent_on_a_console_passes_every_byte_and_ends_with_it() -> None:
    """Xen's console goes when its guest is saved; start-agent then looks for the one that comes (status 3)."""
    host, terminal = os.openpty()
    process = start_at(os.ttyname(terminal))
    try:
        # Until then a terminal echoes what comes, and takes its control characters for its own.
        while termios.tcgetattr(terminal)[3] & termios.ICANON:
            time.sleep(0.01)
        nonce = bytes([3, 4, 10, 13, 17, 19, 26, 28, 127, 255, 0, 1, 2, 5, 8, 21])
        os.write(host, Frame(Kind.HELLO, payload=nonce).pack())
        answer = b""
        while len(answer) < 32:
            answer += os.read(host, 100)
        assert answer[:24] == HEADER.pack(Kind.HELLO, 0, 0, 24) + nonce
        os.close(terminal)
    finally:
        os.close(host)
    assert process.wait(60) == 3
