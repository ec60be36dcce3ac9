"""Writing: the changes that a tree and a transaction make alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xtree.algorithms.kernels.arrays import copy_array
from xtree.algorithms.queries import search
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk, insertion, removal
from xtree.algorithms.updates.one_record import DELETE, INSERT, REPLACE
from xtree.arguments import Boxes, as_threads
from xtree.errors import DimensionError
from xtree.input.conversion import many_ids, stored_boxes
from xtree.input.rows import present
from xtree.persistence.base.progress import Progress
from xtree.persistence.store.write_set import WriteSet
from xtree.reading import Reader

__all__ = ["Writer", "matching_ids", "numbered"]

LEAST_TIMES = 64  # times as many records as are loaded: building a tree of all takes longer than inserting these

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

class Writer(Reader):
    """The writing methods, over the changing state of one tree.

    A record is an (id, box) pair; ids need not be unique and the same record may be stored more than once. Boxes are
    finite float64; a call that refuses its input changes nothing.
    """

    __slots__ = ()

    @abstractmethod
    def _write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(write_set, state, *arguments), all or nothing."""

    @abstractmethod
    def _write_one(self, what: int, id: SupportsIndex, box: Boxes, new_box: Boxes | None = None) -> bool:
        """Changes one record, as write_scope.TreeScope._write_one says."""

    def insert(self, id: SupportsIndex, box: Boxes) -> None:
        """Adds one record. box: (2*d,), or a point (d,).

        Raises InvalidBoxError, DimensionError, TypeError, OverflowError for an id outside int64, and what any write may
        raise: ClosedError, ReadOnlyError, TransactionError, StoreFailedError, OSError, MemoryError, and TimeoutError
        when the log has outrun checkpoints.
        """
        self._write_one(INSERT, id, box)

    def insert_many(self, ids: ArrayLike, boxes: Boxes, *, skip_empty: bool = False) -> None:
        """Adds records, all or none. ids: (n,) integers; boxes: (n, 2*d), or points (n, d).

        skip_empty: leaves out rows that have no box, and their ids: missing and empty geometries, rows of a table
        without any value, rows of NaN.

        Raises what `insert` does, and ValueError when the lengths differ. An array that changes meanwhile is stored as
        it was read, or refused with InvalidBoxError when that is no box.
        """
        self._write(insertion.insert, *_records(ids, boxes, self._dims, skip_empty))

    def bulk_load(
        self,
        ids: ArrayLike,
        boxes: Boxes,
        progress: Progress | None = None,
        threads: int | None = 1,
        *,
        skip_empty: bool = False,
    ) -> None:
        """Builds a packed tree of these records and those that are there already: much faster than inserting many.

        When the tree has 64 times as many records already, these are inserted as by `insert_many`, which takes less
        time and space than building all anew. Either way all of them are stored, or none, with one commit.

        progress: called with (done, total) now and then; an exception that it raises stops the load. threads: how many
        may work; None: one for each processor that this process may use. The tree is the same whatever their number.

        Takes and raises what `insert_many` does; ValueError for threads < 1 too.
        """
        numbers, rows = _records(ids, boxes, self._dims, skip_empty)
        workers = as_threads(threads)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable, not {type(progress).__name__}")
        self._write(_rebuild, numbers, rows, progress, workers)

    def delete(self, id: SupportsIndex, box: Boxes) -> bool:
        """Removes one copy of a record; False when there is none. Raises what `insert` does."""
        return self._write_one(DELETE, id, box)

    def delete_many(self, ids: ArrayLike, boxes: Boxes) -> int:
        """Removes as many copies of each record as are listed; returns how many. Raises what `insert_many` does."""
        return int(self._write(_delete, *_records(ids, boxes, self._dims)))

    def update(self, id: SupportsIndex, old_box: Boxes, new_box: Boxes) -> bool:
        """Gives one copy of a record another box; False, and nothing inserted, when there is none.

        Raises what `insert` does.
        """
        return self._write_one(REPLACE, id, old_box, new_box)


def matching_ids(ids: Any, n: int) -> Ids:
    """ids as (n,) int64 for n boxes. Raises TypeError, OverflowError, DimensionError for another length."""
    numbers: Ids = many_ids(ids)
    if len(numbers) != n:
        raise DimensionError(f"got {len(numbers)} ids for {n} boxes")
    return numbers


def numbered(ids: Any, rows: Floats, kept: NDArray[np.bool_] | None) -> Ids:
    """The ids of rows, 0 .. n-1 for None. ids: one for each given row; kept: which of those are in rows, None: all."""
    n = len(rows if kept is None else kept)
    numbers = np.arange(n, dtype=np.int64) if ids is None else matching_ids(ids, n)
    return numbers if kept is None else numbers[kept]


def _records(ids: Any, boxes: Any, dims: int, skip_empty: bool = False) -> tuple[Ids, Floats]:
    if not skip_empty:
        rows: Floats = stored_boxes(boxes, dims)
        return matching_ids(ids, len(rows)), rows
    boxes, kept = present(boxes, dims)
    rows = stored_boxes(boxes, dims)
    return numbered(many_ids(ids), rows, kept), rows


def _delete(write_set: WriteSet, state: TreeState, ids: Ids, boxes: Floats) -> int:
    before, write_set.spends_reserve = write_set.spends_reserve, True
    try:
        return int(removal.delete(write_set, state, ids, boxes))
    finally:
        write_set.spends_reserve = before


def _joined(first: NDArray[Any], then: NDArray[Any]) -> NDArray[Any]:
    """Two arrays of rows, one after the other, copied so that it can be interrupted."""
    both = np.empty((len(first) + len(then), *first.shape[1:]), first.dtype)
    copy_array(both[: len(first)], first)
    copy_array(both[len(first) :], then)
    return both


def _rebuild(
    write_set: WriteSet, state: TreeState, ids: Ids, boxes: Floats, progress: Progress | None, threads: int
) -> None:
    if not len(ids):
        return
    if state.count >= LEAST_TIMES * len(ids):
        insertion.insert(write_set, state, ids, boxes, progress)
        return
    if state.count:
        present = search.items(write_set.store, state)
        ids, boxes = _joined(present[0], ids), _joined(present[1], boxes)
        bulk.clear(write_set, state)
    bulk.load(write_set, state, ids, boxes, progress, threads)
