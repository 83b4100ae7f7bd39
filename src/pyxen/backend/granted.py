"""Granted pages in a back end's hands, and those that stay there (persistent grants)."""

from __future__ import annotations

from pyxen.backend.guest import GrantError, Grants

_KEPT_MAX = 1056


class GrantedPages:
    """Pages mapped for one queue. A persistent front end uses the same grants again: they stay mapped, oldest first
    out. Not thread-safe: each queue has its own.
    """

    def __init__(self, grants: Grants, *, persistent: bool) -> None:
        self._grants = grants
        self._persistent = persistent
        self._kept: dict[int, tuple[memoryview, bool]] = {}
        self._borrowed: list[int] = []

    def get(self, ref: int, *, write: bool) -> memoryview:
        """The page, at least until ``done``. Raises GrantError."""
        kept = self._kept.get(ref)
        if kept is not None and (kept[1] or not write):
            return kept[0]
        if not self._persistent or kept is not None:
            view = self._grants.map(ref, write=write)
            self._borrowed.append(ref)
            return view
        return self._keep(ref, write)

    def done(self) -> None:
        """Give back what does not stay: before the guest hears that a request is complete."""
        for ref in self._borrowed:
            self._grants.unmap(ref)
        self._borrowed.clear()
        while len(self._kept) > _KEPT_MAX:
            ref = next(iter(self._kept))
            del self._kept[ref]
            self._grants.unmap(ref)

    def close(self) -> None:
        """Give back everything."""
        self.done()
        for ref in self._kept:
            self._grants.unmap(ref)
        self._kept.clear()

    def _keep(self, ref: int, write: bool) -> memoryview:
        # A page that is written to the disk now may be read into later: ask for both, take what there is.
        writable = True
        try:
            view = self._grants.map(ref, write=True)
        except GrantError:
            if write:
                raise
            view, writable = self._grants.map(ref, write=False), False
        self._kept[ref] = (view, writable)
        return view
