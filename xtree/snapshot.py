"""Snapshot: a tree as it was at one epoch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xtree.algorithms.tree_state import TreeState
from xtree.display import as_html
from xtree.errors import ClosedError
from xtree.persistence.store.store import Pin
from xtree.reading import Reader

if TYPE_CHECKING:
    from xtree.tree import XTree

__all__ = ["Snapshot"]


class Snapshot(Reader):
    """A tree frozen at an epoch: it has the reading methods, and gives the same answers for as long as it is open.

    Made by `XTree.snapshot()`; any thread may use it, while others write. It keeps pages from being reused, so close
    it, or use it as a context manager. Raises ClosedError once it, its tree or its index is closed.
    """

    __slots__ = ("__weakref__", "_awaited", "_dims", "_shown")

    def __init__(self, tree: XTree, pin: Pin, state: TreeState) -> None:
        self._dims = state.dims
        self._awaited: tuple[XTree, int] | None = None  # tree and epoch, after a pickle and until the first use
        self._shown: tuple[XTree, Pin, TreeState] | None = (tree, pin, state)  # None once it is closed
        tree._session.note_user(self)
        if tree._view.handle_is_closed:
            self.close()

    def close(self) -> None:
        """Lets the epoch go, once calls that are running have ended. Idempotent."""
        # Running calls hold the pin too; the last one to forget it releases it.
        self._awaited = None
        shown, self._shown = self._shown, None
        if shown is not None:
            shown[0]._session.forget_user(self)

    def _is_of(self, owner: object) -> bool:
        shown = self._shown
        return shown is not None and shown[0] is owner

    def _cut_off(self) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Snapshot:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        shown, awaited = self._shown, self._awaited
        if shown is None and awaited is not None:
            return f"<Snapshot of {awaited[0]!r} at epoch {awaited[1]}>"
        if shown is None:
            return "<Snapshot, closed>"
        tree, pin, state = shown
        if _is_closed(tree, pin):
            return f"<Snapshot of {tree!r}, closed>"
        return f"<Snapshot of {tree!r} at epoch {pin.epoch}: {state.count} records>"

    def _repr_html_(self) -> str:
        summary: dict[str, Any] = {"dims": self._dims}
        shown = self._shown
        if shown is not None:
            tree, pin, state = shown
            summary |= {"records": state.count, "height": state.height, "bounds": state.bounds}
        if shown is None and self._awaited is not None:
            summary["epoch"] = self._awaited[1]
        elif shown is None or _is_closed(tree, pin):
            summary["closed"] = True
        else:
            summary["epoch"] = pin.epoch
        return as_html(summary, "Snapshot")

    def __reduce__(self) -> tuple[Any, ...]:
        from xtree.pickling import snapshot_at, tree_of  # here, since pickling imports this module

        pin, state = self._open()
        shown = self._shown
        if shown is None:
            raise ClosedError("the snapshot is closed")
        tree = shown[0]
        if tree.runtime is None:
            return tree_of, (type(tree), self._dims, state.parameters, *self.items())
        path, uuid, _ = tree.runtime._place()
        return snapshot_at, ((path, uuid, pin.epoch), tree.name, self._dims, tree._owner)

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        pin, state = self._open()
        with pin.store.call():
            return function(pin.store, state, *arguments)

    def _epoch(self) -> int:
        return self._open()[0].epoch

    @classmethod
    def _arriving(cls, tree: XTree, epoch: int) -> Snapshot:
        """A snapshot that came in a pickle; it is taken when it is used."""
        snapshot = cls.__new__(cls)
        snapshot._dims = tree._dims
        snapshot._shown = None
        snapshot._awaited = (tree, epoch)
        return snapshot

    def _arrive(self, tree: XTree, epoch: int) -> None:
        taken = tree.snapshot()
        if taken.epoch != epoch:
            found = taken.epoch
            self._awaited = None
            if tree.runtime is not None:
                tree.runtime.close()
            raise ValueError(f"the snapshot was of epoch {epoch}, which is gone: {tree!r} is at {found}")
        self._shown, taken._shown = taken._shown, None
        self._awaited = None
        tree._session.forget_user(taken)
        tree._session.note_user(self)

    def _open(self) -> tuple[Pin, TreeState]:
        awaited = self._awaited
        if awaited is not None:
            self._arrive(*awaited)
        shown = self._shown
        if shown is None:
            raise ClosedError("the snapshot is closed")
        tree, pin, state = shown
        if tree._view.handle_is_closed:
            raise ClosedError("the snapshot's tree is closed")
        return pin, state


def _is_closed(tree: XTree, pin: Pin) -> bool:
    return tree._view.handle_is_closed or pin.store.state in ("closed", "forked")
