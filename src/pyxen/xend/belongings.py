"""Files that are named after a domain and kept for it while it does not run: its root disk, UEFI variables and TPM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pyxen.engine.contract import DomainSpec
from pyxen.errors import Conflict, ResourceExhausted
from pyxen.image.store import ImageStore
from pyxen.paths import Roots


def root_layer(name: str, image: str, roots: Roots) -> Path:
    """The domain's own writable layer over the root disk of ``image``; it need not exist."""
    return roots.disks / f"{name}-{image}.qcow2"


def variables(name: str, roots: Roots) -> Path:
    """The domain's UEFI variables; they need not exist."""
    return roots.state / "nvram" / f"{name}.fd"


def tpm_state(name: str, roots: Roots) -> Path:
    """The state of the domain's TPM; it need not exist."""
    return roots.state / "tpm" / f"{name}.tpm"


@contextlib.contextmanager
def taken_along(name: str, to: str, image: str | None, roots: Roots, images: ImageStore) -> Iterator[dict[str, str]]:
    """Let a domain's files follow it to its new name, if what is done meanwhile succeeds; yields new paths by old ones.

    They have both names until then, so that an xend that is killed in between finds them under either.
    Raises Conflict where an earlier domain has left a file under the new name. Blocking.
    """
    moves = {variables(name, roots): variables(to, roots), tpm_state(name, roots): tpm_state(to, roots)}
    if image is not None:
        moves[root_layer(name, image, roots)] = root_layer(to, image, roots)
    moves = {old: new for old, new in moves.items() if old.exists()}
    for new in moves.values():
        if new.exists():
            raise Conflict(
                f"cannot rename '{name}' to '{to}': there is {new}, of an earlier domain of that name",
                hint="Remove that file, if nothing in it is wanted any more, or choose another name.",
            )
    made: list[Path] = []
    try:
        for old, new in moves.items():
            os.link(old, new)
            made.append(new)
            images.follow(old, new)
        yield {str(old): str(new) for old, new in moves.items()}
    except BaseException as error:
        for new in made:
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceExhausted(f"cannot rename '{name}': {error}") from error
        raise
    for old in moves:
        old.unlink(missing_ok=True)


def respelled(spec: DomainSpec, name: str, moved: dict[str, str]) -> DomainSpec:
    """The spec of a running domain under its new name, with its files under theirs."""
    disks = tuple(
        msgspec.structs.replace(disk, target=moved.get(disk.target, disk.target)) for disk in spec.config.disk
    )
    config = msgspec.structs.replace(spec.config, name=name, disk=disks)
    nvram, tpm = (moved.get(path or "", path) for path in (spec.nvram, spec.tpm))
    return msgspec.structs.replace(spec, config=config, nvram=nvram, tpm=tpm)
