"""An ordinary user, without a name even, has domains of their own; and root's work in a folder closed to others."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.image import sandbox
from tests.guest.host import CACHE, Host, fetch, free_port, type_line

USER = 54_321
"""No password file knows it."""
SOURCE = Path(__file__).resolve().parents[2] / "src"


class UsersHost(Host):
    """A xend that finds its folders by HOME and XDG_RUNTIME_DIR, run by USER where pytest itself is root."""

    def __init__(self) -> None:
        super().__init__()
        self.home, self.runtime = self.root / "home", self.root / "run"
        shutil.copytree(CACHE / "images" / "tiny", self.home / ".local/state/pyxen/images/tiny")
        self.runtime.mkdir()
        self.environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PYTHONPATH": f"{SOURCE}:{sysconfig.get_path('platlib')}",
            "TERM": "xterm",
        }
        for path in (self.home, *self.home.rglob("*"), self.runtime):
            os.chown(path, user(), user())
        for path in (self.home, self.runtime):
            path.chmod(0o700)

    def argv(self, *words: str) -> list[str]:
        program = [python(), "-P", "-m", {"xm": "pyxen.xm", "xend": "pyxen.xend"}[words[0]], *words[1:]]
        if os.geteuid() == 0:
            rights = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
            return ["setpriv", f"--reuid={USER}", f"--regid={USER}", *rights, *program]
        return program


def user() -> int:
    return USER if os.geteuid() == 0 else os.geteuid()


def python() -> str:
    """A Python that USER may run; root's own may lie in root's home."""
    here = Path(sys.executable)
    debians = Path("/usr/bin/python3")
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in here.resolve().parents):
        return str(here)
    if not debians.resolve().name.endswith(f"{sys.version_info.major}.{sys.version_info.minor}"):
        pytest.skip(f"{here.resolve()} is closed to ordinary users, and {debians} is another version")
    return str(debians)


@pytest.fixture
def users_host(tiny: Path) -> Iterator[UsersHost]:
    if not all(parent.stat().st_mode & 0o001 for parent in (SOURCE, *SOURCE.parents)):
        pytest.skip(f"{SOURCE} is closed to ordinary users")
    host = UsersHost()
    host.start()
    try:
        yield host
    finally:
        leftovers = host.stop()
    assert not leftovers, f"left behind: {leftovers}"


def test_a_user_has_domains_and_a_network(users_host: UsersHost) -> None:
    host = users_host
    info = host.xm("info")
    assert f"state_root             : {host.home}/.local/state/pyxen\n" in info
    assert f"run_root               : {host.runtime}/pyxen\n" in info
    port = free_port()
    host.xm("create", "image=tiny", "name=web", "memory=192", f"vif=forward={port}:7777")
    web = host.domains()["web"]
    assert Path(f"/proc/{web['pid']}").stat().st_uid == user()
    assert web["forwards"] == [f"tcp 127.0.0.1:{port} -> 7777"]
    console = host.ready("web")
    assert type_line(console, "id -u; hostname").split() == ["0", "web"]
    console.sendline("while :; do echo hello from the guest | nc -l -p 7777; done")
    assert fetch(port) == b"hello from the guest\n"
    console.close()
    host.xm("shutdown", "-w", "web")
    assert host.domains() == {}


@pytest.mark.skipif("PYXEN_TEST_HOST" in os.environ, reason="there is no package to be had in there")
def test_a_user_runs_a_kernel_on_the_files_that_the_user_may_read(users_host: UsersHost) -> None:
    host = users_host
    boot = sandbox.prepare(None, CACHE / "kernels", lambda step: None)
    (host.home / "mine").write_text("mine\n")
    os.chown(host.home / "mine", user(), user())
    (host.home / "mine").chmod(0o600)
    script = f"cat {host.home}/mine; echo new >{host.home}/made; echo no >{host.root}/home.other; uname -r"
    done = host.try_run("xm", "run", "--kernel", str(boot.kernel), "--rw", str(host.home), "--script", script)
    assert (done.returncode, done.stdout) == (0, f"mine\n{boot.release}\n"), done.stderr
    made = host.home / "made"
    assert (made.read_text(), made.stat().st_uid) == ("new\n", user())
    assert not (host.root / "home.other").exists()


def test_a_bridge_is_refused_with_a_way_out(users_host: UsersHost) -> None:
    done = users_host.try_run("xm", "create", "image=tiny", "name=web", "memory=192", "vif=bridge=br0")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: a vif on bridge br0 needs root: xend makes a network device for it",
        "Without bridge=… a vif is on a user-mode network, which needs no rights.",
    ]
    assert users_host.domains() == {}


def test_a_user_without_a_home_is_told_what_to_set(users_host: UsersHost) -> None:
    if os.geteuid() != 0:
        pytest.skip("whoever runs this has a home; only root can be somebody else")
    settled = users_host.environ
    users_host.environ = {key: value for key, value in settled.items() if key not in ("HOME", "XDG_RUNTIME_DIR")}
    for words in (["xm", "list"], ["xend", "status"]):
        done = users_host.try_run(*words)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            "Error: there is no home folder for ~",
            "Set HOME or PYXEN_ROOT to a folder.",
        ]
    users_host.environ["HOME"] = "/nonexistent"
    done = users_host.try_run("xend", "start")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: cannot use /nonexistent: Permission denied",
        "Set PYXEN_ROOT to a folder that you may write to.",
    ]
    users_host.environ = settled


def test_domains_reach_their_folder_below_one_that_is_closed_to_them(tiny: Path) -> None:
    host = Host()
    host.root.chmod(0o700)
    host.start()
    try:
        # Readable by all, but not to be reached; and readable by root alone, so that the domain needs a copy.
        kernel, ramdisk = host.root / "vmlinuz", host.root / "ramdisk"
        (packed,) = tiny.glob("*/vmlinuz")
        shutil.copyfile(packed, kernel)
        shutil.copyfile(packed.with_name("ramdisk"), ramdisk)
        kernel.chmod(0o644)
        ramdisk.chmod(0o600)
        host.xm("create", f"kernel={kernel}", f"ramdisk={ramdisk}", "extra=quiet", "name=web", "memory=192")
        if os.geteuid() == 0:
            assert Path(f"/proc/{host.domains()['web']['pid']}").stat().st_uid >= 200_000
        console = host.ready("web")
        assert type_line(console, "echo $((6 * 7))") == "42"
        console.close()
        host.kill_xend()
        host.start()
        host.xm("shutdown", "-w", "web")
        assert host.domains() == {}
    finally:
        leftovers = host.stop()
    assert not leftovers
