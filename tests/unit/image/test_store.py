"""The image store, with a recipe that takes no time."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pyxen import api
from pyxen.errors import Conflict, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from pyxen.image import debs, store
from pyxen.image.debs import KernelFiles, KernelSource
from pyxen.image.modules import ModuleTree
from pyxen.image.recipe import Contents, Report
from pyxen.image.store import ImageStore
from tests.unit.image.kernels import RELEASE, vmlinux


class FakeRecipe:
    """A kernel, and a root disk that holds its own name."""

    VERSION = 1
    OPTIONS: Mapping[str, str] = {"colour": "red"}

    def __init__(self) -> None:
        self.builds: list[Mapping[str, str]] = []
        self.failure: BaseException | None = None

    def check(self, options: Mapping[str, str]) -> None:
        if options["colour"] == "none":
            raise InvalidRequest("there must be a colour")

    def build(
        self, folder: Path, scratch: Path, kernel: KernelFiles, options: Mapping[str, str], report: Report
    ) -> Contents:
        report("Painting", 0.5)
        (folder / "vmlinuz").write_bytes(kernel.vmlinuz.read_bytes())
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "root.qcow2", "1M"], check=True)
        (scratch / "rest").write_bytes(b"rest")
        if self.failure:
            raise self.failure
        self.builds.append(options)
        return Contents(kernel="vmlinuz", root_disk="root.qcow2", cmdline=f"colour={options['colour']}")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRecipe:
    recipe = FakeRecipe()
    (tmp_path / "kernel").write_bytes(vmlinux())
    (tmp_path / "modules").mkdir()
    files = KernelFiles(tmp_path / "kernel", ModuleTree(tmp_path / "modules"))
    monkeypatch.setattr(debs, "find", lambda: KernelSource("test 1", package="linux-image-test"))
    monkeypatch.setattr(debs, "fetch", lambda source, scratch: files)
    monkeypatch.setattr(ImageStore, "_recipe", lambda self, name: recipe)
    return recipe


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "kernels")


def build(images: ImageStore, *, force: bool = False, **options: str) -> api.Image:
    return images.build("tiny", options, force, lambda step: None)


def builds_of(images: ImageStore) -> list[str]:
    return sorted(path.name for path in (images.images / "tiny").iterdir() if path.is_dir())


def test_nothing_there(images: ImageStore) -> None:
    assert images.list() == []
    with pytest.raises(NotFound, match="there is no image 'tiny'") as caught:
        images.get("tiny")
    assert caught.value.hint == "Build it: xm image build tiny"
    with pytest.raises(NotFound, match=r"there is no image '\.\./etc'"):
        images.get("../etc")
    assert "tiny" in images.buildable()


def test_build(images: ImageStore, recipe: FakeRecipe) -> None:
    steps: list[api.Progress] = []
    image = images.build("tiny", {"colour": "blue"}, False, steps.append)
    assert (image.name, image.kind, image.kernel_release, image.cmdline) == ("tiny", "tiny", RELEASE, "colour=blue")
    assert image.root_disk is not None
    for path in (Path(image.kernel), Path(image.root_disk)):
        assert path.stat().st_mode & 0o777 == 0o644
        assert path.parent.stat().st_mode & 0o777 == 0o755
    assert image.size_bytes > 0
    assert images.get("tiny") == image
    assert images.list() == [image]
    assert "Painting" in [step.step for step in steps]
    assert len(builds_of(images)) == 1, "scratch folders are left"


def test_reuse(images: ImageStore, recipe: FakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(images)
    assert build(images) == first
    assert len(recipe.builds) == 1
    build(images, force=True)
    build(images, colour="blue")
    assert len(recipe.builds) == 3
    recipe.VERSION = 2
    build(images, colour="blue")
    monkeypatch.setattr(debs, "find", lambda: KernelSource("test 2", package="linux-image-test"))
    build(images, colour="blue")
    assert len(recipe.builds) == 5
    assert len(builds_of(images)) == 1, "old builds are left"


def test_moved_store(images: ImageStore, recipe: FakeRecipe, tmp_path: Path) -> None:
    build(images)
    images.images.rename(tmp_path / "elsewhere")
    image = ImageStore(tmp_path / "elsewhere", tmp_path / "kernels").get("tiny")
    assert Path(image.kernel).is_file()


@pytest.mark.parametrize("failure", [SystemExit(143), OSError(28, "No space left on device"), NotFound("no package")])
def test_failed_build_leaves_the_old_image(images: ImageStore, recipe: FakeRecipe, failure: BaseException) -> None:
    before = build(images)
    recipe.failure = failure
    with pytest.raises(ResourceExhausted if isinstance(failure, OSError) else type(failure)):
        build(images, force=True)
    assert images.get("tiny") == before
    assert Path(before.kernel).is_file()
    assert builds_of(images) == [Path(before.kernel).parent.name]


def test_options(images: ImageStore, recipe: FakeRecipe) -> None:
    with pytest.raises(InvalidRequest, match="image 'tiny' has no option 'size'") as caught:
        build(images, size="3")
    assert caught.value.hint == "Its options: colour"
    with pytest.raises(InvalidRequest, match="there must be a colour"):
        build(images, colour="none")


def test_two_at_once(images: ImageStore, recipe: FakeRecipe) -> None:
    build(images)
    with (images.images / "tiny" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="image 'tiny' is being built"):
            build(images)
        with pytest.raises(Conflict):
            images.remove("tiny")
        assert images.get("tiny")
    build(images)


def test_remove(images: ImageStore, recipe: FakeRecipe) -> None:
    build(images)
    images.remove("tiny")
    assert images.list() == []
    assert builds_of(images) == []
    with pytest.raises(NotFound):
        images.remove("tiny")


def test_overlay(images: ImageStore, recipe: FakeRecipe, tmp_path: Path) -> None:
    image = build(images)
    disk = tmp_path / "disks" / "a.qcow2"
    images.overlay(image, disk)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", disk]))
    assert (info["backing-filename"], info["backing-filename-format"]) == (image.root_disk, "qcow2")
    content = disk.read_bytes()
    images.overlay(image, disk)
    assert disk.read_bytes() == content, "it was made again"
    assert [path.name for path in disk.parent.iterdir()] == ["a.qcow2"]


def test_a_base_outlives_its_image_while_a_disk_needs_it(
    images: ImageStore, recipe: FakeRecipe, tmp_path: Path
) -> None:
    old = build(images)
    assert old.root_disk is not None
    disk = tmp_path / "a.qcow2"
    images.overlay(old, disk)
    new = build(images, force=True)
    assert new.root_disk != old.root_disk
    assert Path(old.root_disk).is_file()
    images.remove("tiny")
    assert Path(old.root_disk).is_file()
    assert new.root_disk is not None
    assert not Path(new.root_disk).exists()
    disk.unlink()
    build(images)
    assert not Path(old.root_disk).exists()


def test_damaged_record(images: ImageStore, recipe: FakeRecipe) -> None:
    build(images)
    (images.images / "tiny" / "image.json").write_text("{")
    with pytest.raises(Unavailable, match="can't be read") as caught:
        images.get("tiny")
    assert "--force" in str(caught.value.hint)
    assert build(images).name == "tiny"


def test_no_recipe(images: ImageStore) -> None:
    with pytest.raises(NotFound, match="no recipe for an image 'windows'"):
        images.build("windows", {}, False, lambda step: None)


def test_mounted_folders_are_not_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "build"
    (folder / "proc").mkdir(parents=True)
    monkeypatch.setattr(Path, "read_text", lambda self: f"22 1 0:21 / {folder}/proc rw - proc proc rw\n")
    with pytest.raises(Unavailable, match="has something mounted in it"):
        store._remove_tree(folder)
    assert (folder / "proc").is_dir()


def run_builder(tmp_path: Path, *words: str, path: str | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pyxen.image", "build", *words]
    command += ["--images", str(tmp_path / "images"), "--kernels", str(tmp_path / "kernels")]
    environ = os.environ if path is None else {**os.environ, "PATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)


def test_builder_reports_errors_as_progress(tmp_path: Path) -> None:
    process = run_builder(tmp_path, "windows")
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complaint == b""
    last = json.loads(output.splitlines()[-1])
    assert last["done"]
    assert last["error"]["code"] == "not-found"


def test_builder_stops_with_its_tools(tmp_path: Path) -> None:
    """SIGTERM while a tool runs: the tool goes too, and no file stays."""
    tools = tmp_path / "tools"
    tools.mkdir()
    os.mkfifo(tmp_path / "started")
    (tools / "apt-cache").write_text(f"#!/bin/sh\necho $$ >{tmp_path}/started\nexec sleep 1000\n")
    (tools / "apt-cache").chmod(0o755)
    process = run_builder(tmp_path, "tiny", path=f"{tools}:{os.environ['PATH']}")
    tool = int((tmp_path / "started").read_text())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    # Whoever takes in orphans may take a moment to bury one.
    deadline = time.monotonic() + 60
    while Path(f"/proc/{tool}/cmdline").exists() and Path(f"/proc/{tool}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the tool still runs"
        time.sleep(0.01)
    assert sorted(path.name for path in (tmp_path / "images" / "tiny").iterdir()) == ["lock"]
