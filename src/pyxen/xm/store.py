"""xenstore's tree as xenstore-ls prints it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pyxen.api import StoreNode

_PERMISSIONS_COLUMN = 55
_CUT = ' = "\\..."'


def lines(
    nodes: Iterable[StoreNode], root: str, *, full: bool, permissions: bool, width: int | None = None
) -> Iterator[str]:
    """The nodes below ``root``, indented by depth or with ``full`` paths; values are cut at ``width`` columns."""
    depth_of_root = _depth(root)
    for node in nodes:
        depth = _depth(node.path)
        if depth <= depth_of_root:
            continue
        name = node.path if full else " " * (depth - depth_of_root - 1) + node.path.rpartition("/")[2]
        if width is not None and not full:
            name = name[: max(0, width - len(_CUT))]
        value = node.value
        if width is not None and not full and len(name) + len(value) + len(_CUT) > width:
            line = f'{name} = "{value[: max(0, width - len(_CUT) - len(name))]}\\..."'
        else:
            line = f'{name} = "{value}"'
            if permissions and not full:
                line = f"{line} ".ljust(min(_PERMISSIONS_COLUMN, width or _PERMISSIONS_COLUMN))
            elif permissions:
                line += " "
        yield f"{line}  ({','.join(node.permissions)})" if permissions else line


def _depth(path: str) -> int:
    return len([name for name in path.split("/") if name])
