"""Runs in the guest, by a Python without its library: ``guest.py disk DEVICE`` or ``guest.py net HOST PORT``.

Prints one line, "BENCH " and JSON, with what was done in how many seconds of the guest's own clock. The disk is read
and written around the guest's cache (O_DIRECT), by one process or, where several requests are to be under way, as many.
"""

from __future__ import annotations

import _socket
import mmap
import os
import sys
import time
from collections.abc import Callable

_PAGE = 4096
_MIB = 1 << 20
_RANDOM, _DEEP, _SEQUENTIAL = 600, 8, 48
_SENT, _CHUNK, _ROUNDS = 24 * _MIB, 65536, 300


def main() -> None:
    results = disk(sys.argv[2]) if sys.argv[1] == "disk" else net(sys.argv[2], int(sys.argv[3]))
    print("BENCH", "{" + ", ".join(f'"{name}": {seconds:.9f}' for name, seconds in results.items()) + "}", flush=True)


def disk(path: str) -> dict[str, float]:
    """Seconds for each operation or MiB."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    blocks = os.lseek(fd, 0, os.SEEK_END) // _PAGE
    buffer = mmap.mmap(-1, _MIB)
    buffer.write(os.urandom(_MIB))
    page = memoryview(buffer)[:_PAGE]
    # Not random, but no order that a cache could foresee: the same for all.
    places = [number * 7919 % blocks * _PAGE for number in range(_RANDOM)]
    results = {}
    for name, move in (("read", os.preadv), ("write", os.pwritev)):
        small = _each(move, fd, page, places)
        small(50)
        results[f"random_{name}"] = _timed(small, _RANDOM) / _RANDOM
        results[f"random_{name}_deep"] = _at_once(small, _RANDOM // 4) / (_RANDOM // 4 * _DEEP)
        large = _each(move, fd, memoryview(buffer), [number * _MIB for number in range(_SEQUENTIAL)])
        large(2)
        results[f"sequential_{name}"] = _timed(large, _SEQUENTIAL) / _SEQUENTIAL
    return results


def _each(
    move: Callable[[int, list[memoryview], int], int], fd: int, view: memoryview, places: list[int]
) -> Callable[[int], None]:
    def run(count: int) -> None:
        views = [view]
        for place in places[:count]:
            if move(fd, views, place) != len(view):
                raise SystemExit("a short transfer")

    return run


def _timed(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def _at_once(run: Callable[[int], None], count: int) -> float:
    """The same in several processes at a time, from their common start to the end of the last."""
    ready, go = os.pipe(), os.pipe()
    children = []
    for _ in range(_DEEP):
        child = os.fork()
        if child == 0:
            os.close(go[1])
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            run(count)
            os._exit(0)
        children.append(child)
    waiting = _DEEP
    while waiting:
        waiting -= len(os.read(ready[0], waiting))
    start = time.perf_counter()
    os.close(go[1])
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise SystemExit("a process of several failed")
    return time.perf_counter() - start


def net(host: str, port: int) -> dict[str, float]:
    """Seconds for each MiB, and for each round of a byte there and back."""
    chunk = bytearray(_CHUNK)

    def connect(what: bytes) -> _socket.socket:
        connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        connection.connect((host, port))
        connection.sendall(what)
        return connection

    def send(count: int) -> None:
        connection = connect(b"s")
        for _ in range(count // _CHUNK):
            connection.sendall(chunk)
        connection.shutdown(_socket.SHUT_WR)
        connection.recv(1)
        connection.close()

    def receive(count: int) -> None:
        connection = connect(b"r")
        connection.sendall(count.to_bytes(8, "big"))
        while connection.recv_into(chunk):
            pass
        connection.close()

    results = {}
    for name, move in (("send", send), ("receive", receive)):
        move(_MIB)
        results[name] = _timed(move, _SENT) / (_SENT / _MIB)
    connection = connect(b"e")
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        connection.sendall(b"x")
        connection.recv(1)
    results["round"] = (time.perf_counter() - start) / _ROUNDS
    connection.close()
    return results


if __name__ == "__main__":
    main()
