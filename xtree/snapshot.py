"""Snapshot: a tree as it was at one epoch."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from xtree.display import as_html
from xtree.errors import ClosedError
from xtree.persistence.store import Pin
from xtree.reading import Reader
from xtree.tree_state import TreeState

if TYPE_CHECKING:
    from xtree.tree import XTree

__all__ = ["Snapshot"]


class Snapshot(Reader):
    """A tree frozen at an epoch: the reading methods, the same answers for as long as it is open.

    Made by `XTree.snapshot()`; any thread may use it, beside any writer. It keeps pages from being reused, so close it,
    or use it as a context manager. Raises ClosedError once it, its tree or its index is closed.
    """

    __slots__ = ("__weakref__", "_dims", "_pin", "_state", "_store", "_tree")

    def __init__(self, tree: XTree, pin: Pin, state: TreeState) -> None:
        self._tree = tree
        self._store = pin.store
        self._state = state
        self._dims = state.dims
        self._pin: Pin | None = pin

    @property
    def epoch(self) -> int:
        """The epoch that the snapshot shows."""
        return self._epoch()

    def close(self) -> None:
        """Lets the epoch go, once calls that are running have ended. Idempotent."""
        # Running calls hold the pin too; the last one to forget it releases it.
        self._pin = None

    def __enter__(self) -> Snapshot:
        self._open_pin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        pin = self._pin
        if pin is None or self._is_closed(pin):
            return f"<Snapshot of {self._tree!r}, closed>"
        return f"<Snapshot of {self._tree!r} at epoch {pin.epoch}: {self._state.count} records>"

    def _repr_html_(self) -> str:
        pin = self._pin
        summary: dict[str, Any] = {"dims": self._dims, "records": self._state.count, "height": self._state.height}
        summary["bounds"] = self._state.bounds
        if self._is_closed(pin):
            summary["closed"] = True
        elif pin is not None:
            summary["epoch"] = pin.epoch
        return as_html(summary, "Snapshot")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Snapshot can't be pickled or copied")

    def _is_closed(self, pin: Pin | None) -> bool:
        return pin is None or self._tree._view.handle_is_closed or pin.store.state in ("closed", "forked")

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        pin = self._open_pin()
        with pin.store.call():
            return function(pin.store, self._state, *arguments)

    def _epoch(self) -> int:
        return self._open_pin().epoch

    def _open_pin(self) -> Pin:
        pin = self._pin
        if pin is None:
            raise ClosedError("the snapshot is closed")
        if self._tree._view.handle_is_closed:
            raise ClosedError("the snapshot's tree is closed")
        return pin
