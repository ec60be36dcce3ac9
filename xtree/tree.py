"""XTree: the tree that users work with."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

from numpy.typing import ArrayLike

from xtree.algorithms.tree_state import TreeState
from xtree.arguments import AnyPath, Boxes, as_config, as_dims, as_threads, as_timeout
from xtree.config import Config
from xtree.display import as_html, as_line
from xtree.epoch_check import check_all
from xtree.errors import DimensionError
from xtree.forest import Forest
from xtree.input.conversion import stored_boxes, width_of
from xtree.input.rows import present
from xtree.persistence.base.progress import Progress
from xtree.persistence.session import Session
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.store import Store
from xtree.roots import tree_state_of
from xtree.snapshot import Snapshot
from xtree.transaction import Transaction
from xtree.view import TreeView
from xtree.write_scope import write_alone, write_one_alone
from xtree.writer_lock import WriterLock
from xtree.writing import Floats, Ids, Writer, numbered

if TYPE_CHECKING:
    from xtree.runtime import Runtime

__all__ = ["DEFAULT_NAME", "XTree"]

DEFAULT_NAME = "default"  # of the tree that xtree.open opens; reaches disk, never change


class XTree(Writer):
    """A spatial index of boxes and points: an X-tree, in memory or in a durable index.

    `XTree(dims=2)` makes one in memory; `xtree.open(path)` and `Runtime.tree(name)` give durable ones. Any thread may
    use it: readers never wait, writers take turns. Each writing call outside a transaction is a commit of its own.
    As a context manager it closes at the end.

    When it is pickled or copied, a tree in memory takes its records along; a durable one takes its path, and is opened
    there to read. After a fork, a tree in memory is the child's own copy; a durable one can be read there.

    dims: number of dimensions, 1 to 64. config: an `xtree.Config`, whose tree parameters it takes.
    """

    _session: Session
    _lock: WriterLock
    _view: TreeView
    _runtime: Runtime | None
    _owner: bool  # closing it closes the session
    _dims: int

    def __init__(self, dims: int, config: Config | None = None) -> None:
        session = Session(MemoryStore())
        self._attach(session, Forest(session, as_config(config)).find_or_make(DEFAULT_NAME, as_dims(dims)), None, True)

    @classmethod
    def from_boxes(
        cls,
        boxes: Boxes,
        ids: ArrayLike | None = None,
        dims: int | None = None,
        path: AnyPath | None = None,
        config: Config | None = None,
        progress: Progress | None = None,
        threads: int | None = 1,
        *,
        skip_empty: bool = False,
    ) -> XTree:
        """A packed tree of these boxes, in memory, or in a new durable index at `path`.

        boxes: (n, 2*d), or geometries, or a table with named bounds (docs/input.md); with dims= also points (n, d),
        or []. ids: (n,) integers, 0 .. n-1 when not given. progress: called with (done, total) now and then. threads:
        how many may work; None: one for each processor that this process may use. skip_empty: leaves out rows that
        have no box; the others keep their numbers and ids. Input is checked before anything is made; when the load
        itself fails, nothing is left at `path`.

        Raises what `insert_many` does, DimensionError also for (n, 2) without dims=, which may be points or intervals,
        and FileExistsError when there is an index at `path`.
        """
        dims = None if dims is None else as_dims(dims)
        boxes, kept = present(boxes, dims) if skip_empty else (boxes, None)
        if dims is None:
            boxes, width = width_of(boxes)
            if width == 2:
                raise DimensionError(
                    "got boxes of width 2: points in the plane are for from_points, or say dims=2; if they are "
                    "intervals, say dims=1"
                )
            if width % 2:
                raise DimensionError(
                    f"got boxes of width {width}, expected an even one, 2*dims; points are for from_points"
                )
            dims = width // 2
        rows = stored_boxes(boxes, as_dims(dims))
        return cls._packed(numbered(ids, rows, kept), rows, path, config, progress, threads)

    @classmethod
    def from_points(
        cls,
        points: Boxes,
        ids: ArrayLike | None = None,
        *,
        path: AnyPath | None = None,
        config: Config | None = None,
        progress: Progress | None = None,
        threads: int | None = 1,
        skip_empty: bool = False,
    ) -> XTree:
        """A packed tree of these points, in memory, or in a new durable index at `path`.

        points: (n, d), or point geometries, or a table with columns x and y, or lon and lat (docs/input.md). The other
        arguments are those of `from_boxes`. Raises what that does, DimensionError for boxes and for what has no width.
        """
        points, kept = present(points, None, True) if skip_empty else (points, None)
        points, width = width_of(points, True)
        rows = stored_boxes(points, as_dims(width))
        return cls._packed(numbered(ids, rows, kept), rows, path, config, progress, threads)

    @classmethod
    def _packed(
        cls,
        ids: Ids,
        rows: Floats,
        path: AnyPath | None,
        config: Config | None,
        progress: Progress | None,
        threads: int | None,
    ) -> XTree:
        threads = as_threads(threads)
        dims = rows.shape[1] // 2
        if path is None:
            tree = cls(dims, config)
        else:
            from xtree.runtime import discard  # here, since runtime imports this module
            from xtree.runtime import open as open_tree

            tree = open_tree(path, dims, mode="x", config=config)
        try:
            tree.bulk_load(ids, rows, progress, threads)
        except BaseException:
            tree.close() if tree.runtime is None else discard(tree.runtime)
            raise
        return tree

    @property
    def name(self) -> str:
        """The name in its Runtime; "default" for one opened by itself."""
        return self._lock.name

    @property
    def runtime(self) -> Runtime | None:
        """The Runtime that holds the tree; None for a tree in memory."""
        return self._runtime

    @property
    def closed(self) -> bool:
        """Whether the tree can't be used any more: closed or dropped."""
        return self._view.is_closed

    def transaction(self, timeout: float | None = None) -> Transaction:
        """A transaction, to be used in a with statement, which takes the tree's writer lock.

        timeout: seconds to wait for another writer and for room in a log that has outrun checkpoints; after that the
        with statement raises TimeoutError. With None it waits for ever for a writer, and for room
        `Config.backpressure_timeout_s`. The with statement raises TransactionError inside another transaction of this
        thread on this tree.
        """
        return Transaction(self, as_timeout(timeout))

    def snapshot(self) -> Snapshot:
        """The tree as it is now, for as long as the snapshot is open. Raises ClosedError."""
        pin = self._session.pin()
        return Snapshot(self, pin, self._view.state_at(pin.published))

    def check(self) -> None:
        """Verifies the whole tree: containment, exact bounds, reachability, levels, counts, checksums.

        Reads every page. For a tree made or opened by itself it also verifies the store beneath, pages that belong to
        nothing included, and all its files, as `Runtime.check` does.

        Raises CorruptionError at the first thing wrong, OSError.
        """
        if not self._owner:
            super().check()
            return
        self._view.require_open()
        check_all(self._session)

    def backup(self, path: AnyPath, progress: Progress | None = None) -> None:
        """Copies the index that was opened with the tree, as it is now, into a new directory, as Runtime.backup does.

        Raises what that does, and ValueError for a tree in memory or one of a Runtime, which has its own method.
        """
        if self._runtime is None:
            raise ValueError("a tree in memory has no index to copy; XTree.from_boxes(..., path=...) makes one")
        if not self._owner:
            raise ValueError("a Runtime is copied whole: use its backup(), tree.runtime.backup()")
        self._view.require_open()
        self._runtime.backup(path, progress)

    def stats(self) -> dict[str, Any]:
        with self.snapshot() as snapshot:
            return snapshot.stats()

    stats.__doc__ = Writer.stats.__doc__

    def close(self) -> None:
        """Ends the tree's use: open transactions are aborted, running queries finish, later use raises ClosedError.

        A tree opened by itself closes its index; a tree of a Runtime closes only itself. Idempotent.
        """
        self._view.close()
        if not self._owner:
            self._session.cut_off(self)
        else:
            (self._session if self._runtime is None else self._runtime).close()

    def __enter__(self) -> XTree:
        self._view.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return as_line(self._summary())

    def _repr_html_(self) -> str:
        return as_html(self._summary())

    def __reduce__(self) -> tuple[Any, ...]:
        from xtree.pickling import tree_at, tree_of  # here, since pickling imports this module

        self._view.require_open()
        own = {name: value for name, value in vars(self).items() if name not in XTree.__annotations__} or None
        if self._runtime is not None:
            return tree_at, (self._runtime._place(), self.name, self._dims, self._owner), own
        return tree_of, (type(self), self._dims, self._read(_parameters_of), *self.items()), own

    @property
    def _store(self) -> Store:
        return self._session.current()

    def _attach(
        self, session: Session, lock: WriterLock, runtime: Runtime | None, owner: bool, dims: int = 0
    ) -> None:
        """Fills the handle in. dims: of a tree that arrives in a pickle, else 0."""
        self._session = session
        self._lock = lock
        self._runtime = runtime
        self._owner = owner
        self._view = TreeView(session, lock, dims)
        self._dims = self._view.dims

    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._view.run(function, *arguments)

    def _write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return write_alone(self._session, self._lock, self._view, function, *arguments)

    def _write_one(self, what: int, id: SupportsIndex, box: Boxes, new_box: Boxes | None = None) -> bool:
        return write_one_alone(self._session, self._lock, self._view, what, id, box, new_box)

    def _epoch(self) -> int:
        self._view.require_open()
        return self._store.published.epoch

    def _summary(self) -> dict[str, Any]:
        """What is known without reading a page; never raises."""
        summary: dict[str, Any] = {"dims": self._dims}
        if self.closed:
            summary["closed"] = True
        elif not self._session.is_away:
            published = self._session.store.published
            entry = published.catalog.get(self._lock.name)
            if entry is not None:
                state = tree_state_of(entry)
                summary |= {"records": state.count, "height": state.height, "bounds": state.bounds}
                summary["epoch"] = published.epoch
        if self._session.path is not None:
            summary["path"] = self._session.path
            if self._lock.name != DEFAULT_NAME:
                summary["name"] = self._lock.name
            if self._session.read_only:
                summary["mode"] = "r"
        return summary


def _parameters_of(_: Store, state: TreeState) -> dict[str, Any]:
    return state.parameters
