"""A domain's files go with its name, or stay where they were."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyxen.api import Image
from pyxen.config.model import Disk, DiskFormat, DomainConfig
from pyxen.engine.contract import DomainSpec
from pyxen.errors import Conflict
from pyxen.image.store import ImageStore
from pyxen.paths import Roots
from pyxen.xend.belongings import respelled, root_layer, taken_along, variables


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """With a root disk and UEFI variables of the domain ``web``."""
    roots = Roots(state=tmp_path / "state", run=tmp_path / "run")
    for path in (root_layer("web", "debian", roots), variables("web", roots)):
        path.parent.mkdir(parents=True)
        path.write_text(path.name)
    return roots


@pytest.fixture
def images(roots: Roots) -> ImageStore:
    return ImageStore(roots.images, roots.kernels)


def files(roots: Roots) -> dict[str, str]:
    return {path.name: path.read_text() for path in roots.state.rglob("*") if path.is_file()}


def test_files_follow_a_new_name(roots: Roots, images: ImageStore) -> None:
    with taken_along("web", "www", "debian", roots, images) as moved:
        assert len(files(roots)) == 4, "an xend that dies here finds them under either name"
    assert files(roots) == {"www-debian.qcow2": "web-debian.qcow2", "www.fd": "web.fd"}
    disk = Disk(vdev="xvda", target=str(root_layer("web", "debian", roots)), format=DiskFormat.QCOW2)
    other = Disk(vdev="xvdb", target="/srv/data.img")
    spec = DomainSpec(
        domid=1, uuid="1-2", config=DomainConfig(name="web", disk=(disk, other)), nvram=str(variables("web", roots))
    )
    renamed = respelled(spec, "www", moved)
    assert [disk.target for disk in renamed.config.disk] == [str(root_layer("www", "debian", roots)), "/srv/data.img"]
    assert (renamed.config.name, renamed.nvram) == ("www", str(variables("www", roots)))


def test_a_base_is_kept_for_the_new_name(roots: Roots, images: ImageStore) -> None:
    base = roots.images / "debian" / "1234" / "root.qcow2"
    base.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1M"], check=True)
    old, new = root_layer("db", "debian", roots), root_layer("data", "debian", roots)
    image = Image("debian", "debian", 0, 0.0, "6.1", "/vmlinuz", root_disk=str(base))
    images.overlay(image, old)
    with taken_along("db", "data", "debian", roots, images):
        pass
    assert [link.readlink() for link in (base.parent / "used").iterdir() if link.exists()] == [new]


def test_what_fails_moves_nothing(roots: Roots, images: ImageStore) -> None:
    before = files(roots)
    with pytest.raises(ZeroDivisionError), taken_along("web", "www", "debian", roots, images):
        raise ZeroDivisionError
    assert files(roots) == before


def test_an_earlier_domains_files_are_not_taken_over(roots: Roots, images: ImageStore) -> None:
    variables("www", roots).write_text("other")
    before = files(roots)
    taking = taken_along("web", "www", "debian", roots, images)
    with pytest.raises(Conflict, match="of an earlier domain of that name"), taking:
        pass
    assert files(roots) == before


def test_without_files_there_is_nothing_to_do(roots: Roots, images: ImageStore) -> None:
    with taken_along("db", "data", None, roots, images) as moved:
        assert moved == {}
