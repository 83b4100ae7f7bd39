"""Finding and fetching the kernel's package, with stand-ins for apt's commands."""

from __future__ import annotations

import lzma
import os
import subprocess
from pathlib import Path

import pytest

from pyxen.errors import InvalidRequest, ResourceExhausted, Unavailable, Unsupported
from pyxen.image import command, debian, debs, ramdisk
from pyxen.image.cpio import Archive, read
from pyxen.image.modules import ModuleTree
from tests.unit.image.kernels import module

NONE = Path("/nonexistent")
SHOWN = """\
Package: linux-image-cloud-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux
 Depends: on the weather
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def tool(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


def test_find_by_apt(tools: Path) -> None:
    tool(tools, "apt-cache", f"cat <<'X'\n{SHOWN}X")
    source = debs.find(NONE)
    assert source.package == "linux-image-6.1.0-56-cloud-amd64"
    assert source.identity == "linux-image-6.1.0-56-cloud-amd64 6.1.192-2"


def test_find_on_this_host(tmp_path: Path) -> None:
    for release in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.1.0-11-cloud-amd64"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / "boot" / f"vmlinuz-{release}").write_bytes(b"kernel")
        if "11" not in release:
            (tmp_path / "lib/modules" / release / "kernel").mkdir(parents=True)
    source = debs.find(tmp_path)
    assert (source.package, source.release) == ("", "6.1.0-10-cloud-amd64")
    files = debs.fetch(source, NONE, tmp_path)
    assert files.vmlinuz.name == "vmlinuz-6.1.0-10-cloud-amd64"
    assert files.modules.root.name == "6.1.0-10-cloud-amd64"


def test_no_lists_as_an_ordinary_user(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tools, "apt-cache", "echo 'E: No packages found' >&2; exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="apt knows no package linux-image-cloud-amd64") as caught:
        debs.find(NONE)
    assert "sudo apt-get update" in str(caught.value.hint)


def test_no_lists_as_root(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tools, "apt-cache", f"[ -e {tmp_path}/lists ] || exit 100\ncat <<'X'\n{SHOWN}X")
    tool(tools, "apt-get", f'[ "$2" = update ] && touch {tmp_path}/lists')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert debs.find(NONE).package == "linux-image-6.1.0-56-cloud-amd64"


def test_no_apt(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> str:
        raise Unsupported(f"'{name}' is not installed")

    monkeypatch.setattr(command, "need", without)
    with pytest.raises(Unsupported, match="neither Debian's cloud kernel nor apt"):
        debs.find(NONE)


def test_fetch(tools: Path, tmp_path: Path) -> None:
    """A package of our own making, through the real dpkg-deb."""
    release = "6.9.0-1-cloud-amd64"
    package = f"linux-image-{release}"
    tree = tmp_path / "tree"
    for name, text in {
        "DEBIAN/control": f"Package: {package}\nVersion: 1\nArchitecture: amd64\nMaintainer: me\nDescription: x\n",
        f"boot/vmlinuz-{release}": "kernel",
        f"lib/modules/{release}/kernel/a.ko": "module",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["dpkg-deb", "-b", tree, tmp_path / "made.deb"], check=True, stdout=subprocess.DEVNULL)
    tool(tools, "apt-get", f"cp {tmp_path}/made.deb {package}_1_amd64.deb")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files = debs.fetch(debs.KernelSource("x", package=package, release=""), scratch)
    assert files.vmlinuz.read_text() == "kernel"
    assert "a" in files.modules


def test_packages_of_another_architecture_come_by_lists_of_their_own(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may renew those, and one index that fails among several does no harm."""
    shown = "Version: 6.1.1\nDepends: linux-image-6.1.0-9-686-pae (= 6.1.1)"
    lists = debs.Lists("i386", tmp_path / "apt")
    known = f'[ "$APT_CONFIG" = {tmp_path}/apt/apt.conf ] && grep -q i386 "$APT_CONFIG" && [ -e {tmp_path}/renewed ]'
    tool(tools, "apt-cache", f"{known} || exit 100\necho '{shown}'")
    tool(tools, "apt-get", f'case "$*" in *update) touch {tmp_path}/renewed; echo E: one index >&2; exit 100;; esac')
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    source = debs.find_package("linux-image-686-pae", lists)
    assert (source.package, source.identity) == ("linux-image-6.1.0-9-686-pae", "linux-image-6.1.0-9-686-pae 6.1.1")
    with pytest.raises(Unavailable, match="cannot download busybox-static: apt-get has left no file"):
        debs.download("busybox-static", tmp_path, lists=lists)


def test_failures_name_the_tool_and_its_words(tools: Path) -> None:
    tool(tools, "apt-get", "echo Reading...; echo 'W: old' >&2; echo 'E: no such thing' >&2; exit 100")
    with pytest.raises(Unavailable) as caught:
        command.run(["apt-get", "download", "x"], what="download x")
    assert str(caught.value) == "cannot download x: apt-get ended with status 100: E: no such thing"


def test_full_disk(tools: Path) -> None:
    tool(tools, "apt-get", "echo 'write: No space left on device' >&2; exit 1")
    with pytest.raises(ResourceExhausted, match="cannot download x: no space"):
        command.run(["apt-get"], what="download x")


def test_missing_tool() -> None:
    with pytest.raises(Unsupported, match="'no-such-tool' is not installed"):
        command.need("no-such-tool")


def test_debian_takes_debians_sources_only(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [
        "http://mirror.test/debian/|Debian|bookworm|main",
        "http://mirror.test/debian/|Debian|bookworm|contrib",
        "http://mirror.test/debian/|Debian|bookworm-updates|main",
        "http://mirror.test/debian/|Debian|trixie|main",
        "http://other.test/apt/|Docker|bookworm|stable",
    ]
    tool(tools, "apt-get", f"cat <<'X'\n{chr(10).join(targets)}\nX")
    monkeypatch.setattr(debian, "_os_release", lambda: {"VERSION_CODENAME": "bookworm"})
    monkeypatch.setattr(debian, "_KEYRING", NONE)
    suite, sources = debian._sources()
    assert suite == "bookworm"
    assert sources == [
        "deb http://mirror.test/debian/ bookworm main",
        "deb http://mirror.test/debian/ bookworm-updates main",
    ]


def test_debian_hands_on_how_apt_connects(tools: Path) -> None:
    dump = 'Acquire::http::Proxy "http://proxy.test:3128";\nAcquire::Languages "none";\nAPT::Cache "";\n'
    tool(tools, "apt-config", f"cat <<'X'\n{dump}X")
    assert debian._apt_options() == ['Acquire::http::Proxy "http://proxy.test:3128"']


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("password", ""),
        ("password", "a\nb"),
        ("size", "big"),
        ("size", "4G; reboot"),
        ("packages", "a$(b)"),
        ("ssh_key", "x"),
    ],
)
def test_debian_refuses_options(key: str, value: str) -> None:
    with pytest.raises(InvalidRequest):
        debian.check({**debian.OPTIONS, key: value})


def test_busybox_asks_no_terminal() -> None:
    data = ramdisk.busybox()
    assert b"\x1b[6n" not in data
    assert len(data) > 500_000
    assert ramdisk.without_cursor_query(b"something else") == b"something else"


def test_modules_of_a_ramdisk(tmp_path: Path) -> None:
    root = tmp_path / "6.1-test"
    root.mkdir()
    texts = {"top-most": b"depends=middle\x00alias=pci:v1\x00", "middle": b"depends=low\x00", "low": b"depends=\x00"}
    for name, info in texts.items():
        (root / f"{name}.ko").write_bytes(module(info))
    (root / "low.ko").rename(root / "low.ko.xz")
    (root / "low.ko.xz").write_bytes(lzma.compress(module(texts["low"])))
    archive = Archive()
    ramdisk.add_modules(archive, ModuleTree(root), ("top_most", "not-there"))
    files = {entry.path: entry.data for entry in read(archive.pack())}
    folder = "lib/modules/6.1-test"
    assert files[f"{folder}/modules.dep"].decode().splitlines() == [
        "low.ko:",
        "middle.ko: low.ko",
        "top_most.ko: middle.ko low.ko",
    ]
    assert files[f"{folder}/modules.alias"] == b"alias pci:v1 top_most\n"
    assert files[f"{folder}/top_most.ko"] == module(texts["top-most"])
    assert files[f"{folder}/low.ko"] == module(texts["low"]), "still packed"
