"""Kernel modules: which others one needs and which devices it is for, from the ``.modinfo`` section it carries."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyxen.errors import NotFound
from pyxen.image import compression

_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """A module, unpacked. ``name`` has underscores, as the kernel shows it."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


class ModuleTree:
    """The modules below one ``/lib/modules/RELEASE``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths = {_canonical(path): path for path in sorted(root.rglob("*.ko*"))}

    def __contains__(self, name: str) -> bool:
        return name.replace("-", "_") in self._paths

    def load(self, name: str) -> Module:
        """Read one module. Raises NotFound if the kernel has none of that name or its file is damaged."""
        path = self._paths.get(name.replace("-", "_"))
        if path is None:
            raise NotFound(f"kernel {self.root.name} has no module '{name}'")
        try:
            data = path.read_bytes()
            form = compression.detect(data)
            data = compression.decompress(form, data, _LARGEST) if form else data
            info = _modinfo(data)
        except ValueError as error:
            raise NotFound(f"kernel module {path} can't be read: {error}") from error
        depends = tuple(each for text in info.get("depends", ()) for each in text.split(",") if each)
        return Module(_canonical(path), data, depends, tuple(info.get("alias", ())))

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The modules of these names and all they need, in the order in which they can be loaded."""
        ordered: dict[str, Module] = {}

        def visit(name: str) -> None:
            name = name.replace("-", "_")
            if name in ordered:
                return
            module = self.load(name)
            for needed in module.depends:
                visit(needed)
            ordered[name] = module

        for name in names:
            visit(name)
        return list(ordered.values())


def _canonical(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _modinfo(data: bytes) -> dict[str, list[str]]:
    """The ``key=value`` texts of ``.modinfo`` (Linux, include/linux/moduleparam.h)."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise ValueError(f"it is not an ELF file ({error})") from error
    if section is None:
        raise ValueError("it has no .modinfo section")
    info: dict[str, list[str]] = {}
    for text in section.data().decode(errors="replace").split("\x00"):
        key, equals, value = text.partition("=")
        if equals:
            info.setdefault(key, []).append(value)
    return info
