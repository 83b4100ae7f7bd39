"""Tests in the test host take minutes on a busy machine: their limits only end what hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.image import ramdisk, tiny
from pyxen.image.kernel import unpack
from tests.testhost import image

_LIMIT_S = 1000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(_LIMIT_S))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernel and the ramdisk of the image tiny, by their places in the test host."""
    ramdisk.busybox()
    kernel = image.kernel()
    place = tmp_path_factory.mktemp("inner") / "ramdisk"
    place.write_bytes(tiny.make_ramdisk(kernel.modules))
    return {"/vmlinux": unpack(kernel.vmlinuz, image.BUILD / "kernels").vmlinux, "/ramdisk": place}
