"""``xm run``: a command in a kernel of its own on the host's files, and nothing left of it afterwards."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.guest.host import Host, wait_for

pytestmark = pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="there is no package to be had in there")


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder that everybody may read, as the host's own root isn't."""
    with tempfile.TemporaryDirectory(prefix="pyxen-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def box(shared: Host) -> Iterator[Host]:
    """The host; afterwards no domain, no folder and no last words of one may be left."""
    yield shared
    wait_for(lambda: not shared.domains(), "the domain has ended")
    wait_for(lambda: not [*shared.root.glob("run/domains/*"), *shared.root.glob("state/console/*")], "nothing is left")


def run(host: Host, *words: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        host.argv("xm", "run", *words),
        env=host.environ,
        cwd=cwd or host.root,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def begin(host: Host, *words: str) -> subprocess.Popen[str]:
    """A run whose command has said its first word."""
    running = host.popen("xm", "run", *words)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    return running


def status(running: subprocess.Popen[str]) -> int:
    running.communicate(timeout=60)
    return running.returncode


def test_a_command_has_the_hosts_files_and_its_callers_surroundings(box: Host, work: Path) -> None:
    (work / "note").write_text("from the host\n")
    (work / "secret").write_text("no\n")
    (work / "secret").chmod(0o600)
    box.environ["LANG"] = "C.UTF-8"
    script = (
        "cat note; cat secret; pwd; echo $LANG $COLOUR; cat; uname -n >&2; "
        "echo mine >made && cat made; touch /etc/made /made && echo written; exit 7"
    )
    done = run(box, "-e", "COLOUR=red", "--script", script, stdin="typed\n", cwd=work)
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "from the host"
    if os.geteuid() == 0:  # else the monitor runs as the user that the file belongs to
        assert "secret: Permission denied" in done.stderr
        lines.insert(1, "no")
    assert lines[1:] == ["no", str(work), "C.UTF-8 red", "typed", "mine", "written"]
    assert re.search(r"^run-[0-9a-f]{4}$", done.stderr, re.MULTILINE)
    assert not any(path.exists() for path in (work / "made", Path("/etc/made"), Path("/made")))


def test_what_cannot_be_run(box: Host) -> None:
    missing = run(box, "--", "/no/such")
    assert (missing.returncode, missing.stdout) == (127, "")
    assert "cannot run '/no/such'" in missing.stderr
    assert run(box, "--script", "kill -9 $$").returncode == 137
    refused = run(box, "--engine", "xen", "--", "true")
    assert refused.returncode == 1 and "no 9pfs" in refused.stderr
    assert "there is no kernel 'nonsense'" in run(box, "--kernel", "nonsense", "--", "true").stderr
    assert "no such folder" in run(box, "--rw", "nowhere", "--", "true").stderr


def test_folders_that_it_may_change(box: Host) -> None:
    out = box.root / "out"
    out.mkdir(mode=0o700, exist_ok=True)
    (out / "there").write_text("before\n")
    (out / "there").chmod(0o600)
    done = run(box, "--rw", "out", "--script", "cd out && cat there && echo after >there && echo new >made && mkdir d")
    assert (done.returncode, done.stdout) == (0, "before\n"), done.stderr
    assert (out / "there").read_text() == "after\n"
    assert (out / "made").read_text() == "new\n"
    assert {path.stat().st_uid for path in out.iterdir()} == {os.geteuid()}


def test_a_module_of_the_kernel_loads(box: Host) -> None:
    itself = "modprobe zram && ls -d /sys/block/zram0"
    by_the_kernel = "mount -t squashfs /dev/zram0 /mnt; grep -o '^squashfs' /proc/modules"
    done = run(box, "--script", f"{itself}; {by_the_kernel}")
    assert done.stdout.splitlines() == ["/sys/block/zram0", "squashfs"], done.stderr


def test_it_is_a_domain_and_ctrl_c_ends_it(box: Host) -> None:
    running = begin(box, "--memory", "300", "--script", "echo ready; exec sleep 1000")
    ((name, domain),) = box.domains().items()
    assert re.fullmatch("run-[0-9a-f]{4}", name)
    assert (domain["memory_mib"], domain["power_state"]) == (300, "running")
    assert box.xm("exec", name, "--", "uname", "-n") == f"{name}\n"
    running.send_signal(signal.SIGINT)
    assert status(running) == 128 + signal.SIGINT
    assert not box.domains()


def test_one_that_ignores_ctrl_c(box: Host) -> None:
    running = begin(box, "--script", "trap '' INT; echo ready; sleep 1000; sleep 1000")
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(1)
    running.send_signal(signal.SIGINT)
    assert status(running) == 130


def test_ctrl_c_while_it_boots(box: Host) -> None:
    running = box.popen("xm", "run", "--", "true")
    wait_for(box.domains, "it has been started")
    running.send_signal(signal.SIGINT)
    assert status(running) == 130


def test_its_callers_death_ends_it(box: Host) -> None:
    running = begin(box, "--script", "echo ready; exec sleep 1000")
    running.kill()
    running.communicate()


def test_xends_death_ends_it_when_there_is_a_xend_again(box: Host) -> None:
    running = begin(box, "--script", "echo ready; exec sleep 1000")
    box.kill_xend()
    _, error = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "hung up on" in error
    box.start()


def test_a_crash_is_told_with_the_kernels_last_words(box: Host) -> None:
    done = run(box, "--script", "echo c >/proc/sysrq-trigger; sleep 60")
    assert done.returncode == 1
    assert "the guest's kernel has crashed" in done.stderr
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_terminal(box: Host) -> None:
    program, *words = box.argv("xm", "run", "--", "sh")
    environ = {**box.environ, "TERM": "vt220"}
    shell = pexpect.spawn(
        program, words, env=environ, cwd=str(box.root), encoding="utf-8", timeout=90, dimensions=(31, 99)
    )
    shell.expect("# ")
    shell.sendline("stty size; tty; echo $TERM")
    shell.expect(r"31 99\r\n/dev/pts/\d\r\nvt220")
    shell.sendline("sleep 1000")
    shell.sendcontrol("c")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5
    program, *words = box.argv("xm", "run", "--script", "trap '' INT; echo begun; sleep 1000")
    shell = pexpect.spawn(program, words, env=environ, encoding="utf-8", timeout=90)
    shell.expect("begun")
    shell.sendcontrol("]")
    shell.expect(pexpect.EOF)
    shell.close()


def test_gdb_finds_it_at_its_first_instruction(box: Host) -> None:
    running = box.popen("xm", "run", "--gdb", "--", "echo", "done")
    assert running.stderr is not None
    match = re.search(r"run-[0-9a-f]{4} waits for gdb: gdb -ex 'target remote (.*)'\n", running.stderr.readline())
    assert match
    ((_, domain),) = box.domains().items()
    assert (domain["gdb"], domain["state"]) == (match[1], "--p---")
    with socket.socket(socket.AF_UNIX) as gdb:
        gdb.settimeout(60)
        gdb.connect(match[1])
        assert ask(gdb, b"?").startswith(b"T05")
        registers = bytes.fromhex(ask(gdb, b"g").decode())
        assert int.from_bytes(registers[16 * 8 : 17 * 8], "little") in (0xFFF0, 0xFFFF_FFF0)  # where a PC starts
        gdb.sendall(b"+$c#63")
        output, error = running.communicate(timeout=90)
    assert (output, running.returncode) == ("done\n", 0), error


def ask(gdb: socket.socket, packet: bytes) -> bytes:
    """The answer to a packet of gdb's remote protocol."""
    gdb.sendall(b"+$" + packet + b"#%02x" % (sum(packet) & 0xFF))
    answer = b""
    while not re.search(rb"#[0-9a-f]{2}$", answer):
        piece = gdb.recv(4096)
        assert piece, "hung up"
        answer += piece
    return answer.split(b"$", 1)[1].rsplit(b"#", 1)[0]


def test_the_sdk(box: Host) -> None:
    code = (
        "import asyncio; from pyxen.client import AsyncClient; from pyxen.run_api import RunRequest\n"
        "from pyxen.agent_api import ExecRequest\n"
        "async def main():\n"
        "    async with AsyncClient() as xend:\n"
        "        print(await xend.run(RunRequest(ExecRequest(['tr', 'a-z', 'A-Z'])), b'typed'))\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=box.environ, capture_output=True, text=True, check=False)
    assert done.stdout == "ExecResult(status=0, stdout=b'TYPED', stderr=b'')\n", done.stderr
