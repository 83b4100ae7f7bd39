"""A process that outlives whoever started it: spawn it, watch it by a pidfd, end it, find it again.

``os.posix_spawn`` starts a monitor, rather than ``subprocess``: the parent need not hold an object for a child that it
may not outlive, the C library starts it without copying the parent's memory map, and the descriptors that the child
inherits are named one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pyxen.engine.numa import preferring
from pyxen.engine.smallpages import pages

_GRACE_S = 5.0
_TAIL_BYTES = 4096


def spawn(
    argv: Sequence[str],
    *,
    stderr: Path,
    pass_fds: Iterable[int] = (),
    nodes: Collection[int] = (),
    small_pages: bool = False,
) -> int:
    """Start ``argv`` (its first word is an absolute path) in a session of its own; returns its process id.

    Its standard input is empty, its output goes to the file ``stderr``; the descriptors ``pass_fds`` keep their
    numbers in it. It takes its memory from the NUMA ``nodes`` first, if there are any, and with ``small_pages`` never
    in huge ones by itself. Raises OSError.
    """
    pass_fds = list(pass_fds)
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int] | tuple[int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(stderr), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        # Onto itself: takes the close-on-exec flag off in the child alone, so no other child can get it by accident.
        *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
        # What this process itself was given by its parent (a shell's pipe, say) must not be held open for ever.
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in pass_fds),
    ]
    with preferring(nodes), pages(small=small_pages):
        return os.posix_spawn(
            argv[0],
            list(argv),
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )


_ENTER = """
n=$1
shift
while [ $n -gt 0 ]; do
  echo 0 >"$1"
  shift
  n=$((n - 1))
done 2>/dev/null
exec "$@"
"""


def start_daemon(
    argv: Sequence[str], *, pass_fds: Iterable[int], groups: Sequence[Path] = (), timeout_s: float = 30.0
) -> str:
    """Run a program that goes into the background by itself once it is ready; blocking.

    ``groups``: what it writes itself into before it starts (cgroup.procs), as far as it may. Returns why it did not
    start, in its own words; empty if it runs.
    """
    if groups:
        argv = ["/bin/sh", "-c", _ENTER, "sh", str(len(groups)), *map(str, groups), *argv]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=list(pass_fds),
            timeout=timeout_s,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = done.stderr.decode(errors="replace").strip()
    return (words or f"status {done.returncode}") if done.returncode else ""


def _inheritable() -> list[int]:
    """Descriptors above 2 that a child would get."""
    found: list[int] = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if (fd := int(entry.name)) > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


class Process:
    """A process known by a pidfd, child or not. ``on_exit`` runs once on the running loop."""

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self.pid = pid
        self.ended_by: int | None = None
        """The signal that ended it, where it was our child and one did."""
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._gone = asyncio.Event()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._exited)

    @property
    def alive(self) -> bool:
        """False once its end has been seen; stays as it is after ``close``."""
        return not self._gone.is_set()

    async def terminate(self, grace_s: float = _GRACE_S) -> None:
        """Ask it to end (SIGTERM), make it end after ``grace_s`` seconds, wait until it is gone.

        Does nothing after ``close``: who has let go of it would never hear of its end.
        """
        if self._fd < 0:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._gone.wait(), grace_s)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._gone.wait()

    def close(self) -> None:
        """Stop watching it; the process runs on."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _signal(self, number: int) -> None:
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def _exited(self) -> None:
        self.ended_by = _collect(self.pid)
        self.close()
        self._gone.set()
        self._on_exit()


def _collect(pid: int) -> int | None:
    """Let a dead child go; returns the signal that it died of. Someone else's child is its own parent's business."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found and os.WIFSIGNALED(status):
            return os.WTERMSIG(status)
    return None


def command_line(pid: int) -> list[bytes]:
    """The words that a process was started with; empty for one that is gone, a zombie or a kernel thread."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def marker(directory: Path) -> str:
    """What a domain's process has as one of its arguments, and nothing else has: the name of no file."""
    return f"{directory}/monitor"


def belongs_to(pid: int, directory: Path) -> bool:
    """Is ``pid`` a process of the domain in this folder? (Somebody's ``tail -f`` of a file in it is not.)"""
    word = os.fsencode(marker(directory))
    return any(each == word or each.endswith(b"=" + word) for each in command_line(pid))


def find(directory: Path) -> list[int]:
    """The processes that belong to a domain's folder, this one and its threads apart."""
    own = os.getpid()
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if pid != own and belongs_to(pid, directory)]


def kill_all(directory: Path) -> None:
    """Kill the processes that belong to a domain's folder, and wait for them. Blocking."""
    _signal_all(directory, signal.SIGKILL)


def end_all(directory: Path, *, having: str | None = None) -> None:
    """The same, but each is first asked to end by itself. ``having``: only those with this argument. Blocking."""
    _signal_all(directory, signal.SIGTERM, having)
    _signal_all(directory, signal.SIGKILL, having)


def _signal_all(directory: Path, number: signal.Signals, having: str | None = None) -> None:
    for pid in find(directory):
        if having is not None and os.fsencode(having) not in command_line(pid):
            continue
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Looked at again now that the pidfd pins it: the number may have been given to another process.
            if belongs_to(pid, directory):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
                select.select([fd], [], [], _GRACE_S)
                _collect(pid)
        finally:
            os.close(fd)


def read_pid(directory: Path) -> int | None:
    """The living process that the folder's ``pid`` file names, if it is still the domain's."""
    try:
        pid = int((directory / "pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and belongs_to(pid, directory) else None


def last_words(path: Path, lines: int = 6) -> str:
    """The end of a file that a process wrote its complaints to; empty if there are none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(line for line in text.splitlines()[-lines:] if line.strip())
