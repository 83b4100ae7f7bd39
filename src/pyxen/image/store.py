"""The images of one xend: building, finding and removing them.

    IMAGES/NAME/image.json    what the image is; its replacement is the moment at which a new build counts
    IMAGES/NAME/BUILD/        the files of one build
    IMAGES/NAME/BUILD/used/   symbolic links to the writable layers over this build's root disk
    IMAGES/NAME/lock          held while building or removing

A build whose root disk lies under a domain's layer stays until that layer is gone, since it is half of that disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, cast

import msgspec

from pyxen import api
from pyxen.errors import Conflict, InvalidRequest, NotFound, Unavailable
from pyxen.image.files import make_folder, storage_error, write_file
from pyxen.image.recipe import Contents, Recipe

_RECIPES: Final = ("debian", "tiny")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Inside the class, list is the method.
Images: TypeAlias = list[api.Image]
Names: TypeAlias = list[str]


class _Record(msgspec.Struct):
    """image.json. File names are relative to the build's folder, so that the whole store can be moved."""

    kind: str
    build: str
    created_at: float
    kernel_release: str
    kernel: str
    ramdisk: str | None
    root_disk: str | None
    cmdline: str
    size_bytes: int
    made_of: dict[str, str]


class ImageStore:
    """The images below ``images``; their unpacked kernels are kept below ``kernels``. All calls block."""

    def __init__(self, images: Path, kernels: Path) -> None:
        self.images = images
        self.kernels = kernels

    def list(self) -> Images:
        """All images that can be read, by name."""
        try:
            names = sorted(path.name for path in self.images.iterdir() if _NAME.fullmatch(path.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unavailable(f"cannot read {self.images}: {error.strerror}") from None
        return [self._image(name, record) for name in names if (record := self._readable_record(name))]

    def get(self, name: str) -> api.Image:
        """One image. Raises NotFound, with what there is."""
        record = self._record(name)
        if record is None:
            present = ", ".join(image.name for image in self.list()) or "none"
            hint = f"Build it: xm image build {name}" if name in _RECIPES else f"There are: {present}"
            raise NotFound(f"there is no image '{name}'", hint=hint)
        return self._image(name, record)

    def buildable(self) -> Names:
        """The images there are recipes for."""
        return [*_RECIPES]

    def remove(self, name: str) -> None:
        """Remove an image; of its files those that a domain's disk still builds on stay until it is gone."""
        record = self.images / name / "image.json"
        if not _NAME.fullmatch(name) or not record.exists():
            self.get(name)
        with self._lock(name):
            record.unlink(missing_ok=True)
            self._collect(name)

    def build(
        self, name: str, options: Mapping[str, str], force: bool, progress: Callable[[api.Progress], None]
    ) -> api.Image:
        """Build an image, or return the one that is there if nothing it is made of has changed.

        Raises Conflict while another process builds it, InvalidRequest for options it does not have.
        """
        from pyxen.image import debs

        recipe = self._recipe(name)
        chosen = _check_options(name, recipe, options)
        with self._lock(name):
            self._collect(name)
            recipe.check(chosen)
            progress(api.Progress("Looking for Debian's cloud kernel", 0.0))
            source = debs.find()
            made_of = {
                "recipe": str(recipe.VERSION),
                "kernel": source.identity,
                "options": hashlib.sha256(msgspec.json.encode(sorted(chosen.items()))).hexdigest(),
            }
            present = self._readable_record(name)
            if present and present.made_of == made_of and not force:
                return self._image(name, present)
            with self._temporary(name) as folder, tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
                progress(api.Progress(f"Getting {source.package or source.release}", 0.05))
                files = debs.fetch(source, Path(scratch))
                report = lambda step, fraction: progress(api.Progress(step, fraction))  # noqa: E731
                contents = recipe.build(folder, Path(scratch), files, chosen, report)
                self._install(name, folder, contents, made_of)
            self._collect(name)
            return self.get(name)

    def overlay(self, image: api.Image, disk: Path) -> None:
        """Make ``disk``, a qcow2 layer over the image's root disk, unless it is there."""
        if image.root_disk is None:
            raise InvalidRequest(f"image '{image.name}' has no root disk")
        if disk.exists():
            return
        from pyxen.image.command import run

        base = Path(image.root_disk)
        used = base.parent / "used"
        link = used / _link_name(disk)
        temporary = disk.with_name(f".{disk.name}.{secrets.token_hex(4)}")
        try:
            disk.parent.mkdir(parents=True, exist_ok=True)
            used.mkdir(exist_ok=True)
            # The link comes first: a layer without one could lose its base.
            with contextlib.suppress(FileExistsError):
                link.symlink_to(disk.absolute())
            create: Sequence[str | Path] = [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                base,
                temporary,
            ]
            run(create, what=f"make {disk}")
            temporary.replace(disk)
        except OSError as error:
            raise storage_error(error, disk) from error
        finally:
            temporary.unlink(missing_ok=True)

    def follow(self, disk: Path, new: Path) -> None:
        """Note that the layer ``disk`` is now also known as ``new``, so that its base is kept for that name too."""
        for link in self.images.glob(f"*/*/used/{_link_name(disk)}"):
            with contextlib.suppress(FileExistsError):
                link.with_name(_link_name(new)).symlink_to(new.absolute())

    def _recipe(self, name: str) -> Recipe:
        if name not in _RECIPES:
            raise NotFound(
                f"there is no recipe for an image '{name}'", hint=f"These can be built: {', '.join(_RECIPES)}"
            )
        return cast(Recipe, importlib.import_module(f"pyxen.image.{name}"))

    def _install(self, name: str, folder: Path, contents: Contents, made_of: dict[str, str]) -> None:
        """Make the finished files in ``folder`` the image."""
        from pyxen.image.kernel import unpack

        build = secrets.token_hex(4)
        final = self.images / name / build
        for path in folder.iterdir():
            if path.is_file():
                path.chmod(0o644)
        make_folder(final)
        try:
            for file in (contents.kernel, contents.ramdisk, contents.root_disk):
                if file:
                    (folder / file).rename(final / file)
            record = _Record(
                kind=name,
                build=build,
                created_at=time.time(),
                kernel_release=unpack(final / contents.kernel, self.kernels).release,
                kernel=contents.kernel,
                ramdisk=contents.ramdisk,
                root_disk=contents.root_disk,
                cmdline=contents.cmdline,
                size_bytes=sum(path.stat().st_blocks * 512 for path in final.iterdir()),
                made_of=made_of,
            )
            write_file(self.images / name / "image.json", [msgspec.json.format(msgspec.json.encode(record))])
        except BaseException:
            shutil.rmtree(final, ignore_errors=True)
            raise

    def _record(self, name: str) -> _Record | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            record = msgspec.json.decode((self.images / name / "image.json").read_bytes(), type=_Record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise Unavailable(
                f"image '{name}' can't be read: {error}", hint=f"Build it again: xm image build --force {name}"
            ) from None
        return record if (self.images / name / record.build).is_dir() else None

    def _image(self, name: str, record: _Record) -> api.Image:
        folder = (self.images / name / record.build).absolute()
        return api.Image(
            name=name,
            kind=record.kind,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            kernel_release=record.kernel_release,
            kernel=str(folder / record.kernel),
            ramdisk=str(folder / record.ramdisk) if record.ramdisk else None,
            cmdline=record.cmdline,
            root_disk=str(folder / record.root_disk) if record.root_disk else None,
        )

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        path = self.images / name / "lock"
        try:
            make_folder(path.parent)
            file = path.open("ab")
        except OSError as error:
            raise storage_error(error, path) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"image '{name}' is being built or removed by somebody else") from None
            yield

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        """A folder for a build in the making, on the same file system; gone afterwards, whatever happens."""
        try:
            folder = Path(tempfile.mkdtemp(dir=self.images / name, prefix=".build-"))
        except OSError as error:
            raise storage_error(error, self.images / name) from None
        try:
            yield folder
        except OSError as error:
            raise storage_error(error, Path(error.filename or folder)) from error
        finally:
            _remove_tree(folder)

    def _collect(self, name: str) -> None:
        """Remove what no record and no domain's disk refers to. Called with the lock held."""
        folder = self.images / name
        record = self._readable_record(name)
        for path in folder.iterdir():
            if path.is_dir() and not (record and path.name == record.build) and not _in_use(path):
                _remove_tree(path)
            elif path.name.startswith(".image.json."):
                path.unlink(missing_ok=True)

    def _readable_record(self, name: str) -> _Record | None:
        try:
            return self._record(name)
        except Unavailable:
            return None


def _check_options(name: str, recipe: Recipe, options: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(options) - set(recipe.OPTIONS))
    if unknown:
        known = ", ".join(recipe.OPTIONS) or "none"
        raise InvalidRequest(f"image '{name}' has no option '{unknown[0]}'", hint=f"Its options: {known}")
    return {**recipe.OPTIONS, **options}


def _link_name(disk: Path) -> str:
    return hashlib.sha256(os.fsencode(disk.absolute())).hexdigest()[:16]


def _in_use(build: Path) -> bool:
    used = build / "used"
    return used.is_dir() and any(link.exists() for link in used.iterdir())


def _remove_tree(folder: Path) -> None:
    """Remove a folder with all in it, unless something is mounted there: that would be emptied too."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    inside = f"{folder.absolute()}/"
    if any(line.split()[4].startswith(inside) for line in mounts):
        raise Unavailable(f"{folder} has something mounted in it", hint=f"Unmount it, then remove {folder}.")
    shutil.rmtree(folder, ignore_errors=True)
