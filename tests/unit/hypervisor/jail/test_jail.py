"""Children that enter the jail and then try what they may and what they may not: as root, and as an ordinary user."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxen.abi import blkif, netif
from pyxen.backend.disk import RawDisk
from pyxen.backend.link import PLAIN, StreamLink, TapLink
from pyxen.backend.nbd import NbdDisk
from pyxen.errors import InvalidRequest, Unsupported
from pyxen.hypervisor import linux
from pyxen.hypervisor.jail import Jail, Mode, landlock, limits, mode, namespaces, privileges
from pyxen.hypervisor.jail.syscalls import NUMBERS
from pyxen.hypervisor.kvm.uapi import Exit
from pyxen.hypervisor.loop import Loop, Timer
from tests.unit.backend.test_block import Blkfront
from tests.unit.backend.test_net import Netfront
from tests.unit.hypervisor.jail import cell
from tests.unit.hypervisor.jail.cell import IS_ROOT, PRISONER, Outcome
from tests.unit.hypervisor.kvm.micro import micro_guest, needs_kvm

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
_LAYERS = ["limits", "no capabilities", "no new privileges", "not dumpable", "landlock", "seccomp"]
Action = Callable[..., Any]


@pytest.fixture(params=["root", "ordinary"])
def ordinary(request: pytest.FixtureRequest) -> bool:
    """Who starts the process that is to be jailed."""
    if request.param == "root" and not IS_ROOT:
        pytest.skip("needs root")
    return bool(request.param == "ordinary")


@pytest.fixture
def place(ordinary: bool) -> Iterator[Path]:
    with cell.folder(ordinary=ordinary) as path:
        yield path


def jailed(
    action: Action, place: Path, *, ordinary: bool, mode: Mode = Mode.ON, made: Action = lambda: None
) -> Outcome:
    """Do ``made`` and ``action`` around the door. ``action`` gets what ``made`` returned, if it wants it."""

    def live() -> Any:
        jail = Jail(mode, keep=[])
        things = made()
        jail.enter(place, uid=None if ordinary else PRISONER, vcpus=1)
        return action(*([things] if things is not None else []))

    return cell.run(live, ordinary=ordinary)


def refusal(action: Action) -> str:
    """The name of the errno that ``action`` ends with."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def test_the_layers_that_this_host_has_are_in_force(place: Path, ordinary: bool) -> None:
    def report() -> dict[str, list[str]]:
        jail = Jail(Mode.ON, keep=[])
        jail.enter(place, uid=None if ordinary else PRISONER, vcpus=1)
        return {"layers": jail.report.layers, "missing": jail.report.missing}

    said = cell.run(report, ordinary=ordinary).said
    missing = {each.partition(":")[0] for each in said["missing"]}
    # Which of these another host has is not for a test to say; that each is either in force or named is.
    assert missing <= {"namespaces", "landlock"}
    expected = {"descriptors", "namespaces", "empty root", *_LAYERS} | (set() if ordinary else {"user"})
    if "namespaces" in missing:
        expected -= {"empty root"}
    assert sorted([*said["layers"], *missing]) == sorted(expected)


def test_nothing_is_left_of_what_root_may_do(ordinary: bool) -> None:
    def look() -> list[str]:
        privileges.empty_bounding_set()
        if not ordinary:
            privileges.become(PRISONER)
        privileges.no_capabilities()
        privileges.no_new()
        status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return [status[key].split()[0] for key in ("Uid", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")]

    user = PRISONER if not ordinary else cell.ORDINARY if IS_ROOT else os.geteuid()
    assert cell.run(look, ordinary=ordinary).said == [str(user), *["0" * 16] * 3, "1"]


def _python_writes(path: Path) -> None:
    path.write_text("x")


def _map_executable() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda: Path(__file__).read_text(), ("FileNotFoundError", errno.ENOENT)),
        (lambda: _python_writes(Path("/tmp/pyxen-x")), ("FileNotFoundError", errno.ENOENT)),
        (lambda: os.listdir("/"), ("FileNotFoundError", errno.ENOENT)),
        (lambda: os.listdir("/proc/self/fd"), ("FileNotFoundError", errno.ENOENT)),
        (lambda: os.open("/dev/kvm", os.O_RDWR), ("FileNotFoundError", errno.ENOENT)),
        (_map_executable, ("PermissionError", errno.EPERM)),
        (lambda: fcntl.ioctl(2, 0x5412, b"x"), ("OSError", errno.ENOTTY)),  # TIOCSTI
        (lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE), ("PermissionError", errno.EPERM)),
        (lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)), ("ValueError", None)),
    ],
)
def test_what_is_refused(action: Action, error: tuple[str, int | None], place: Path, ordinary: bool) -> None:
    found = jailed(action, place, ordinary=ordinary).error
    assert found is not None
    assert found[0] == error[0] and (error[1] is None or found[1] == error[1])


def test_a_file_that_it_had_open_stays(place: Path, ordinary: bool) -> None:
    """It can be written to, as its socket can be used; but not removed: ending does not fail for that."""
    path = place / "log"
    path.touch()
    path.chmod(0o666)

    def leave(fd: int) -> str:
        os.write(fd, b"last words")
        path.unlink(missing_ok=True)
        return refusal(lambda: os.unlink(path))

    found = jailed(leave, place, ordinary=ordinary, made=lambda: os.open(path, os.O_WRONLY))
    assert found.said == "ENOENT"
    assert path.read_text() == "last words"


@pytest.mark.parametrize(
    "action",
    [
        lambda: socket.socket(socket.AF_INET),
        lambda: socket.socket(socket.AF_UNIX),
        lambda: socket.socketpair(),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        os.fork,
        lambda: linux.checked("ptrace", 16, os.getppid(), None, None),
        lambda: os.kill(os.getppid(), signal.SIGUSR2),
        lambda: signal.pidfd_send_signal(0, signal.SIGTERM),
        lambda: linux.checked("syscall", NUMBERS["tgkill"], os.getppid(), os.getppid(), int(signal.SIGUSR2)),
        lambda: linux.checked("mount", b"none", b"/", b"tmpfs", 0, None),
        lambda: linux.checked("unshare", 0x10000000),
        lambda: os.setuid(0),
        lambda: os.chroot("/"),
        lambda: os.mkdir("/x"),
        lambda: os.rename("/x", "/y"),
        lambda: os.chmod("/", 0o777),
        lambda: linux.checked("syscall", NUMBERS["io_uring_setup"], 1, None),
        lambda: linux.checked("syscall", NUMBERS["bpf"], 0, None, 0),
        lambda: linux.checked("syscall", 0x40000000 | NUMBERS["getpid"]),  # x32
    ],
)
def test_what_ends_the_process(action: Action, place: Path, ordinary: bool) -> None:
    assert jailed(action, place, ordinary=ordinary) == Outcome(signal=signal.SIGSYS)


def test_a_thread_is_under_the_filter_as_well(place: Path, ordinary: bool) -> None:
    def start() -> None:
        thread = threading.Thread(target=socket.socket)
        thread.start()
        thread.join()

    assert jailed(start, place, ordinary=ordinary) == Outcome(signal=signal.SIGSYS)


def test_disks_work(place: Path, ordinary: bool) -> None:
    image = place / "disk"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o666)

    def use(disk: RawDisk) -> list[Any]:
        disk.write_from(4096, [memoryview(b"abcd"), memoryview(b"efgh")])
        disk.flush()
        found = bytearray(8)
        disk.read_into(4096, [memoryview(found)])
        disk.discard(0, 8192)
        gone = bytearray(8)
        disk.read_into(4096, [memoryview(gone)])
        return [found.decode(), gone.hex(), disk.size, disk.discards]

    outcome = jailed(use, place, ordinary=ordinary, made=lambda: RawDisk.open(image, read_only=False))
    assert outcome.said == ["abcdefgh", "00" * 8, 1 << 20, True]


@pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="qemu-nbd is not installed (apt-get install qemu-utils)")
def test_disks_behind_a_server_and_streams_work(place: Path, ordinary: bool) -> None:
    image, path = place / "disk.qcow2", place / "nbd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    # It ends with its only client, the child.
    subprocess.run(["qemu-nbd", "--fork", "--discard=unmap", "-f", "qcow2", f"--socket={path}", image], check=True)
    path.chmod(0o666)

    def make() -> tuple[NbdDisk, StreamLink, socket.socket]:
        ours, theirs = socket.socketpair()
        return NbdDisk.at(path), StreamLink(ours), theirs

    def use(things: tuple[NbdDisk, StreamLink, socket.socket]) -> list[Any]:
        disk, link, other = things
        disk.write_from(4096, [memoryview(b"abcd"), memoryview(b"efgh")])
        disk.flush()
        found = bytearray(8)
        disk.read_into(4096, [memoryview(found)])
        disk.discard(0, 65536)
        disk.close()
        link.send([b"a frame"], PLAIN)
        other.sendall(other.recv(100))
        buffer = bytearray(70000)
        received = link.receive(buffer)
        return [found.decode(), buffer[: received[0] if received else 0].decode()]

    assert jailed(use, place, ordinary=ordinary, made=make).said == ["abcdefgh", "a frame"]


def test_devices_connect_and_work(place: Path, ordinary: bool) -> None:
    """Front ends come when they like, so their queues are made inside."""
    image = place / "image"
    image.write_bytes(b"abcd" * 1024 + bytes(1 << 20))
    image.chmod(0o666)

    def make() -> tuple[RawDisk, StreamLink, socket.socket]:
        ours, theirs = socket.socketpair()
        return RawDisk.open(image, read_only=False), StreamLink(ours), theirs

    def use(things: tuple[RawDisk, StreamLink, socket.socket]) -> list[Any]:
        disk, link, other = things
        vif, vbd = Netfront(link, split=True), Blkfront(disk)
        ref, _ = vif.guest.page()
        sent = vif.send(netif.TX_REQUEST.pack(ref, 0, 0, 1, 60))
        ref, page = vbd.guest.page()
        read = vbd.ask(vbd.request(blkif.Operation.READ, 0, [(ref, 0, 7)]))
        vif.close()
        vbd.close()
        return [sent, len(other.recv(1000)), int(read), bytes(page[:4]).decode()]

    outcome = jailed(use, place, ordinary=ordinary, made=make)
    assert outcome.said == [[[1, 0]], 64, 0, "abcd"]


def test_sockets_that_listen_take_callers_and_their_descriptors(place: Path, ordinary: bool) -> None:
    path = place / "sock"
    (place / "given").write_text("inside")

    def listen() -> socket.socket:
        found = socket.socket(socket.AF_UNIX)
        found.bind(str(path))
        found.listen(1)
        return found

    def serve(listening: socket.socket) -> list[Any]:
        caller, _ = listening.accept()
        caller.settimeout(20)
        words, fds, _, _ = socket.recv_fds(caller, 100, 1)
        text = os.pread(fds[0], 100, 0)
        with os.fdopen(fds[0], "r") as file:
            again = file.read()
        caller.sendall(b"answer")
        listening.close()
        path.unlink(missing_ok=True)
        return [words.decode(), text.decode(), again]

    answers: list[bytes] = []

    def call() -> None:
        with socket.socket(socket.AF_UNIX) as caller, (place / "given").open("rb") as file:
            caller.settimeout(20)
            for _ in range(400):
                with contextlib.suppress(OSError):
                    caller.connect(str(path))
                    break
                time.sleep(0.01)
            socket.send_fds(caller, [b"ask"], [file.fileno()])
            answers.append(caller.recv(100))

    caller = threading.Thread(target=call)
    caller.start()
    outcome = jailed(serve, place, ordinary=ordinary, made=listen)
    caller.join()
    assert outcome.said == ["ask", "inside", "inside"]
    assert answers == [b"answer"]


def test_the_loop_threads_signals_and_memory_work(place: Path, ordinary: bool) -> None:
    def live(things: tuple[Loop, list[str], Timer]) -> list[str]:
        loop, seen, timer = things
        signal.signal(signal.SIGUSR1, lambda number, frame: seen.append("signal"))

        def work() -> None:
            linux.name_thread("worker")
            pages = mmap.mmap(-1, 1 << 24, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages[:4] = b"page"
            pages.madvise(mmap.MADV_HUGEPAGE)
            pages.madvise(mmap.MADV_DONTNEED, 0, 4096)
            seen.append(f"memory {pages[:4].hex()}")
            time.sleep(0.001)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            loop.call_soon(lambda: timer.arm(1))

        thread = threading.Thread(target=work)
        thread.start()
        loop.run()
        thread.join()
        return seen

    def make() -> tuple[Loop, list[str], Timer]:
        loop, seen = Loop(), list[str]()

        def expired() -> None:
            seen.append("timer")
            loop.stop()

        return loop, seen, Timer(loop, expired)

    outcome = jailed(live, place, ordinary=ordinary, made=make)
    assert sorted(outcome.said) == ["memory 00000000", "signal", "timer"]


def test_a_traceback_is_shown_without_its_source(place: Path, ordinary: bool) -> None:
    """Neither the files are there, nor a module that was not imported: none of it may hide what went wrong."""

    def fail() -> list[str]:
        try:
            import wave  # noqa: F401  a module that nothing here needs
        except ModuleNotFoundError as error:
            return ["".join(traceback.format_exception(error)).splitlines()[-1]]
        return []

    assert "wave" not in sys.modules
    assert jailed(fail, place, ordinary=ordinary).said == ["ModuleNotFoundError: No module named 'wave'"]


@needs_kvm
def test_a_guest_runs(place: Path, ordinary: bool) -> None:
    if ordinary and IS_ROOT and not os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("/dev/kvm is closed to ordinary users")

    def live() -> list[int]:
        jail = Jail(Mode.ON, keep=[])
        # out 0x42, al; hlt
        with micro_guest("b007 e642 f4") as guest:
            jail.enter(place, uid=None if ordinary else PRISONER, vcpus=1)
            reasons = [guest.run()]
            data = guest.vcpu.io()[3].tobytes()
            return [*reasons, data[0], guest.run()]

    assert cell.run(live, ordinary=ordinary).said == [Exit.IO, 7, Exit.HLT]


@needs_root
@pytest.mark.skipif(not os.access("/dev/net/tun", os.R_OK), reason="/dev/net/tun can't be opened here")
def test_a_tap_works_from_another_network_namespace() -> None:
    """The tap lives in a namespace made for the test; the process that uses it goes into an empty one of its own."""

    def live(place: Path) -> list[Any]:
        linux.checked("unshare", 0x40000000)  # the host's, as it were
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x5002))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, 0x8914, struct.pack("16sH22x", b"tap0", 1))
        jail = Jail(Mode.ON, keep=[fd])
        link = TapLink(fd)
        jail.enter(place, uid=PRISONER, vcpus=1)
        link.accept(blank=True, tso4=True, tso6=True)
        link.send([b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x08\x06" + bytes(46)], PLAIN)
        return ["namespaces" in jail.report.layers, link.receive(bytearray(70000)) is None or "a frame"]

    with cell.folder(ordinary=False) as place:
        outcome = cell.run(lambda: live(place))
    assert outcome.error is None and outcome.said[0] is True


@pytest.mark.skipif(not cell.user_namespaces() and not IS_ROOT, reason="this host has no user namespaces")
@pytest.mark.parametrize("pivots", [True, False], ids=["pivot", "initial-ram-disk"])
def test_the_root_is_empty_without_the_other_layers(
    place: Path, ordinary: bool, pivots: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *arguments: object) -> int:
        """As an initial RAM disk does, which can't be left that way."""
        if arguments[0] == NUMBERS["pivot_root"]:
            raise OSError(errno.EINVAL, "Invalid argument")
        return checked(name, *arguments)

    checked = linux.checked
    if not pivots:
        monkeypatch.setattr(linux, "checked", refuse)

    def look() -> list[Any]:
        before = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "ipc", "uts")]
        namespaces.unshare()
        after = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "ipc", "uts")]
        (place / "file").touch()
        namespaces.empty_root(place)
        links = [name for _, name in socket.if_nameindex()]
        return [
            sum(a != b for a, b in zip(before, after, strict=True)),
            os.listdir("/"),
            os.getcwd(),
            links,
            refusal(lambda: os.mkdir("/x")),
        ]

    assert cell.run(look, ordinary=ordinary).said == [4, [], "/", ["lo"], "EROFS"]
    assert os.listdir(place) == ["file"]


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_landlock_closes_files_without_the_other_layers(place: Path, ordinary: bool) -> None:
    def look() -> list[str]:
        privileges.no_new()
        before = os.open(__file__, os.O_RDONLY)
        landlock.restrict(landlock.version())
        return [
            os.read(before, 3).decode(),
            refusal(lambda: os.open(__file__, os.O_RDONLY)),
            refusal(lambda: os.open(place / "new", os.O_WRONLY | os.O_CREAT)),
        ]

    said = cell.run(look, ordinary=ordinary).said
    assert said == ['"""', "EACCES", "EACCES"]


def test_a_user_without_rights_gets_none_back() -> None:
    """Without the filter: setuid(0) and signals to others are refused by the kernel itself."""

    def attempt() -> list[str]:
        privileges.empty_bounding_set()
        if IS_ROOT:
            privileges.become(PRISONER)
        privileges.no_capabilities()
        privileges.no_new()
        return [refusal(lambda: os.setuid(0)), refusal(lambda: os.setgroups([0])), refusal(lambda: os.kill(1, 0))]

    assert cell.run(attempt).said == ["EPERM"] * 3


def test_inherited_descriptors_are_closed() -> None:
    def look() -> list[int]:
        kept, lost = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
        high = fcntl.fcntl(lost, fcntl.F_DUPFD, 300)
        limits.close_others([kept, 0, 1])
        seen = []
        for fd in (2, kept, lost, high):
            try:
                os.fstat(fd)
                seen.append(1)
            except OSError:
                seen.append(0)
        return seen

    assert cell.run(look).said == [1, 1, 0, 0]


def test_limits() -> None:
    def look() -> list[Any]:
        limits.limit(threads=3)
        kinds = (resource.RLIMIT_CORE, resource.RLIMIT_NPROC)
        return [*(resource.getrlimit(kind) for kind in kinds), resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 1024]

    assert cell.run(look).said == [[0, 0], [259, 259], True]


def test_without_namespaces_it_goes_on_and_says_so(
    place: Path, ordinary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(namespaces, "unshare", refuse)

    def live() -> list[Any]:
        jail = Jail(Mode.ON, keep=[])
        jail.enter(place, uid=None if ordinary else PRISONER, vcpus=1)
        try:
            Path(__file__).read_text()
        except FileNotFoundError:
            return [jail.report.missing, jail.report.layers[-1]]
        return []

    assert cell.run(live, ordinary=ordinary).said == [["namespaces: Operation not permitted"], "seccomp"]


def test_require_runs_no_guest_where_something_is_missing(
    place: Path, ordinary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    error = jailed(lambda: "ran", place, ordinary=ordinary, mode=Mode.REQUIRE).error
    assert error is not None and error[0] == Unsupported.__name__
    assert "landlock: the kernel has none" in str(error[1])


@needs_root
def test_root_without_another_user_is_told(place: Path) -> None:
    def live() -> list[str]:
        jail = Jail(Mode.ON, keep=[])
        jail.enter(place, uid=None, vcpus=1)
        return jail.report.missing

    with_cell = cell.run(live).said
    assert [each for each in with_cell if each.startswith("user")] == [
        "user: it was started as root, without a user to become"
    ]


def test_off_is_no_jail_and_says_so(place: Path, ordinary: bool) -> None:
    def live() -> list[Any]:
        jail = Jail(Mode.OFF, keep=[])
        jail.enter(place, uid=PRISONER, vcpus=1)
        return [jail.report.layers, jail.report.missing, Path(__file__).exists()]

    assert cell.run(live, ordinary=ordinary).said == [[], ["all of it: PYXEN_JAIL is off"], True]


def test_the_modes_words() -> None:
    assert mode({}) is Mode.ON and mode({"PYXEN_JAIL": ""}) is Mode.ON
    assert mode({"PYXEN_JAIL": "require"}) is Mode.REQUIRE
    with pytest.raises(InvalidRequest, match="PYXEN_JAIL is 'no'"):
        mode({"PYXEN_JAIL": "no"})


_TRAPPED = """
import socket, sys
from pathlib import Path
from pyxen.hypervisor.jail import Jail, Mode
jail = Jail(Mode.TRAP, keep=[])
jail.enter(Path(sys.argv[1]), uid=None, vcpus=1)
def ask_for_a_socket():
    socket.socket()
ask_for_a_socket()
"""


def test_trap_names_the_call_and_the_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TRAPPED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 128 + signal.SIGSYS
    assert "the jail stopped the system call socket (41), made here:" in done.stderr
    assert "in ask_for_a_socket" in done.stderr
