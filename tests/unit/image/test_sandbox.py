"""What ``xm run`` boots: kernels wherever they are, their modules, and the ramdisk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyxen.errors import ConfigError, NotFound, PyxenError, Unsupported
from pyxen.image import sandbox
from tests.unit.image.kernels import RELEASE, bzimage, module, payload, vmlinux

NINE_P = module(b"depends=\x00alias=fs-9p\x00name=9p\x00")


def prepare(name: str, kernels: Path) -> tuple[sandbox.Boot, list[str]]:
    steps: list[str] = []
    return sandbox.prepare(name, kernels, steps.append), steps


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel's build tree with one module, as make leaves it."""
    tree = tmp_path / "linux"
    (tree / "fs" / "9p").mkdir(parents=True)
    (tree / "fs" / "9p" / "9p.ko").write_bytes(NINE_P)
    (tree / "modules.order").write_text("fs/9p/9p.o\n")
    (tree / "arch" / "x86" / "boot").mkdir(parents=True)
    (tree / "arch" / "x86" / "boot" / "bzImage").write_bytes(bzimage(payload("gzip", vmlinux(pvh=False))))
    (tree / "vmlinux").write_bytes(vmlinux())
    return tree


def test_a_build_tree(tree: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    assert sandbox.ready(str(tree), kernels) is None
    boot, steps = prepare(str(tree), kernels)
    assert steps == ["Unpacking the kernel", "Listing the modules of the build tree", "Making the ramdisk"]
    assert (boot.kernel, boot.release, boot.pvh) == (tree / "arch/x86/boot/bzImage", RELEASE, False)
    assert boot.symbols == tree / "vmlinux"
    assert boot.modules is not None
    assert (boot.modules / "kernel" / "fs" / "9p" / "9p.ko").read_bytes() == NINE_P
    assert "9p.ko" in (boot.modules / "modules.dep").read_text()
    assert b"lib/modules/" + RELEASE.encode() + b"/9p.ko" in boot.ramdisk.read_bytes()
    assert sandbox.ready(str(tree), kernels) == boot
    assert prepare(str(boot.kernel), kernels) == (boot, [])
    started_by_itself, _ = prepare(str(tree / "vmlinux"), kernels)
    assert started_by_itself.pvh and started_by_itself.modules == boot.modules
    # Built again, with another module.
    (tree / "fs" / "9p" / "other.ko").write_bytes(NINE_P)
    (tree / "modules.order").write_text("fs/9p/9p.ko\nfs/9p/other.ko\n")
    again, steps = prepare(str(tree), kernels)
    assert steps == ["Listing the modules of the build tree", "Making the ramdisk"]
    assert again.modules is not None
    assert sorted(path.name for path in again.modules.rglob("*.ko")) == ["9p.ko", "other.ko"]


@pytest.mark.parametrize("merged", [False, True])
def test_a_package(tmp_path: Path, merged: bool) -> None:
    files = tmp_path / "files"
    modules = files / ("usr/lib" if merged else "lib") / "modules" / RELEASE / "kernel"
    modules.mkdir(parents=True)
    (modules / "9p.ko").write_bytes(NINE_P)
    (files / "boot").mkdir()
    (files / "boot" / f"vmlinuz-{RELEASE}").write_bytes(bzimage(payload("xz", vmlinux())))
    deb = pack(files, tmp_path)
    kernels = tmp_path / "kernels"
    boot, steps = prepare(str(deb), kernels)
    assert steps[:2] == ["Getting linux-image-test.deb", "Unpacking its files"]
    assert (boot.release, boot.pvh, boot.symbols) == (RELEASE, True, None)
    assert boot.modules is not None and (boot.modules / "modules.dep").exists()
    assert boot.modules.is_relative_to(kernels)
    assert sandbox.ready(str(deb), kernels) == boot
    assert not list(kernels.rglob("*.part"))
    # The same kernel, by its own name in the unpacked package.
    assert prepare(str(boot.kernel), kernels)[0] == boot


def pack(files: Path, folder: Path) -> Path:
    (files / "DEBIAN").mkdir()
    (files / "DEBIAN" / "control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: amd64\nMaintainer: me <me@here>\nDescription: a test\n"
    )
    deb = folder / "linux-image-test.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", files, deb], check=True, capture_output=True)
    return deb


def test_a_package_without_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    deb = pack(tmp_path / "files", tmp_path)
    with pytest.raises(NotFound, match="holds no kernel"):
        prepare(str(deb), tmp_path / "kernels")


def test_a_kernel_without_9p_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "fs" / "9p" / "9p.ko").rename(tree / "fs" / "9p" / "other.ko")
    (tree / "modules.order").write_text("fs/9p/other.o\n")
    with pytest.raises(Unsupported, match="has no 9p"):
        prepare(str(tree), tmp_path / "kernels")
    (tree / "modules.builtin").write_text("kernel/fs/9p/9p.ko\n")
    (tree / "modules.order").write_text("fs/9p/other.o\n")
    prepare(str(tree), tmp_path / "kernels")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nonsense", NotFound, "there is no kernel 'nonsense'"),
        ("{tmp}/none", ConfigError, "cannot read kernel"),
        ("{tmp}/empty", NotFound, "no kernel has been built"),
        ("{tmp}/small", Unsupported, "has 32 bits"),
        ("{tmp}/vmlinux-without", ConfigError, "no PVH entry point"),
        ("{tmp}/none.deb", NotFound, "none.deb: No such file"),
    ],
)
def test_what_cannot_be_run(tmp_path: Path, name: str, kind: type[PyxenError], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "small").write_bytes(vmlinux(bits=32))
    (tmp_path / "vmlinux-without").write_bytes(vmlinux(pvh=False))
    with pytest.raises(kind, match=message):
        prepare(name.format(tmp=tmp_path), tmp_path / "kernels")
