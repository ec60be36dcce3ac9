"""Reading: the questions that a tree, a snapshot and a transaction answer alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from xtree.algorithms.kernels.arrays import as_pairs
from xtree.algorithms.kernels.parallel import in_threads
from xtree.algorithms.queries import explain, inspection, join, nearest, search
from xtree.algorithms.tree_state import TreeState
from xtree.arguments import Boxes, as_distance, as_join_predicate, as_neighbours, as_output, as_predicate, as_threads
from xtree.errors import DimensionError
from xtree.input.conversion import finite_points, is_plain, one_id, query_boxes
from xtree.input.rows import rows_given
from xtree.persistence.store.store import Store
from xtree.view import TreeView

__all__ = ["Predicate", "Reader"]

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Predicate: TypeAlias = Literal["intersects", "contains", "covers", "within", "covered_by"]
OneBox: TypeAlias = Sequence[float]

class Reader:
    """The reading methods, over one state of one tree.

    Boxes are `[min_0 … min_{d-1}, max_0 … max_{d-1}]`, closed: touching counts. Where boxes are asked for, arrays of
    width d are taken as points. The rank of an array decides: 1-D is one box, 2-D is many.
    """

    __slots__ = ()

    _dims: int
    _view: TreeView | None = None  # of a reader that always reads the current epoch

    @abstractmethod
    def _read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(store, state, *arguments), with the state protected meanwhile. Raises ClosedError."""

    @overload
    def query(
        self,
        boxes: Boxes,
        predicate: Predicate = ...,
        output: Literal["pairs"] = ...,
        threads: int | None = ...,
    ) -> Ids: ...
    @overload
    def query(
        self, boxes: Boxes, predicate: Predicate = ..., *, output: Literal["csr"], threads: int | None = ...
    ) -> tuple[Ids, Ids]: ...
    @overload
    def query(
        self, boxes: Boxes, predicate: Predicate, output: Literal["csr"], threads: int | None = ...
    ) -> tuple[Ids, Ids]: ...
    def query(
        self,
        boxes: Boxes,
        predicate: Predicate = "intersects",
        output: Literal["pairs", "csr"] = "pairs",
        threads: int | None = 1,
    ) -> Ids | tuple[Ids, Ids]:
        """The ids of the records that a query box intersects, contains or lies within.

        boxes: one box (2*d,) or point (d,), or many, (m, 2*d) or (m, d); tables and geometries too (docs/input.md).
        Infinite bounds make half-open windows. Two corners are no box: [[0, 0], [10, 10]] are two points; the window
        between them is [0, 0, 10, 10]. A geometry that is missing or empty has no hits.

        predicate: what the query box does; it is the subject, as in shapely, geopandas and rtree. "intersects": it
        shares at least a point with the record's box. "contains" or "covers": it holds all of that box. "within" or
        "covered_by": it lies inside that box. The edge always belongs to a box.

        threads: how many threads may answer a batch; None: one for each processor that this process may use. If the
        system gives no more threads, those that there are do the work.

        Returns for one box the ids, (k,) int64, in no particular order; a record stored twice comes twice. For many
        boxes and output="pairs" it returns an array (2, n) int64: index of the query, id; ordered by the first. With
        output="csr" it returns (offsets, ids), (m+1,) int64 and (n,) int64, where query i has
        ids[offsets[i]:offsets[i + 1]]; this saves writing the first row, and is for arrays of boxes only.

        Raises InvalidBoxError for NaN or min > max, DimensionError for another shape, TypeError for anything but real
        numbers, ValueError for an unknown predicate or output or less than one thread, MemoryError when the results
        need more memory than the system has left, ClosedError.
        """
        if self._view is not None and output == "pairs" and threads == 1:
            found = self._view.query_plain(boxes, predicate)
            if found is not None:
                return found
        number, workers = as_predicate(predicate), as_threads(threads)
        windows = query_boxes(boxes, self._dims)
        if windows.ndim == 1:
            if as_output(output) == "csr":
                raise DimensionError(f"output='csr' is for many boxes: expected (m, {2 * self._dims}), got one box")
            return self._read(search.query_one, windows, number)
        form = as_output(output)
        offsets, ids = self._read(in_threads, workers, search.query, windows, number)
        return (offsets, ids) if form == "csr" else as_pairs(offsets, ids)

    @overload
    def count(self, boxes: OneBox, predicate: Predicate = ..., threads: int | None = ...) -> int: ...
    @overload
    def count(self, boxes: Sequence[OneBox], predicate: Predicate = ..., threads: int | None = ...) -> Ids: ...
    @overload
    def count(self, boxes: Boxes, predicate: Predicate = ..., threads: int | None = ...) -> Any: ...
    def count(self, boxes: Boxes, predicate: Predicate = "intersects", threads: int | None = 1) -> int | Ids:
        """How many records a query box intersects, contains or lies within: an int for one box, (m,) int64 for many.

        Takes and raises what `query` does.
        """
        if self._view is not None and threads == 1:
            found = self._view.count_plain(boxes, predicate)
            if found is not None:
                return found
        number, workers = as_predicate(predicate), as_threads(threads)
        windows = query_boxes(boxes, self._dims)
        if windows.ndim == 1:
            return int(self._read(search.count, windows, number)[0])
        return self._read(in_threads, workers, search.count, windows, number)

    @overload
    def nearest(
        self,
        points: Boxes,
        k: int = ...,
        max_distance: float | None = ...,
        return_distance: Literal[False] = ...,
        threads: int | None = ...,
    ) -> Ids: ...
    @overload
    def nearest(
        self,
        points: Boxes,
        k: int = ...,
        max_distance: float | None = ...,
        *,
        return_distance: Literal[True],
        threads: int | None = ...,
    ) -> tuple[Ids, Floats]: ...
    @overload
    def nearest(
        self,
        points: Boxes,
        k: int,
        max_distance: float | None,
        return_distance: Literal[True],
        threads: int | None = ...,
    ) -> tuple[Ids, Floats]: ...
    @overload
    def nearest(
        self,
        points: Boxes,
        k: int = ...,
        max_distance: float | None = ...,
        return_distance: bool = ...,
        threads: int | None = ...,
    ) -> Ids | tuple[Ids, Floats]: ...
    def nearest(
        self,
        points: Boxes,
        k: int = 1,
        max_distance: float | None = None,
        return_distance: bool = False,
        threads: int | None = 1,
    ) -> Ids | tuple[Ids, Floats]:
        """The k records nearest to a point, by Euclidean distance to their boxes (0 inside).

        points: one, (d,), or many, (m, d); finite; tables and point geometries too (docs/input.md). A geometry that is
        missing or empty has no neighbours. max_distance: the largest distance, inclusive; records farther away are left
        out. threads: how many may answer a batch, as in `query`.

        Returns for one point the ids, (min(k, len),) int64, ordered by (distance, id); with return_distance=True
        (ids, distances), the distances float64. For many points it returns an array (2, n) int64: index of the point,
        id; grouped by the first, and ordered by (distance, id) in each group; with return_distance=True
        (pairs, distances (n,)).

        Raises ValueError for k or threads < 1, a point that isn't finite or a negative max_distance, DimensionError for
        another shape, TypeError for anything but real numbers, MemoryError at once when the neighbours need more memory
        than the system has left, ClosedError.
        """
        if self._view is not None and threads == 1:
            plain = self._view.nearest_plain(points, k, max_distance)
            if plain is not None:
                return plain if return_distance else plain[0]
        count, limit, workers = as_neighbours(k), as_distance(max_distance), as_threads(threads)
        rows, there, one = self._points(points)
        offsets, ids, distances = self._read(_nearest, workers, rows, count, limit)
        found = ids if one else as_pairs(offsets, ids)
        if there is not None and not one:
            found[0] = there[found[0]]
        return (found, distances) if return_distance else found

    def explain(self, boxes: Boxes, predicate: Predicate = "intersects") -> dict[str, Any]:
        """What `query` with these boxes costs on any machine: the pages it reads and the entries it tests.

        Returns a dict, summed over the boxes: queries; results; pages read; blocks, of the tree's page size, so that a
        supernode of s blocks counts as s; entries tested, none in pages that lie inside the window; and levels, a list
        of dicts with level, pages, blocks, entries, from the leaves up. A page counts once for each query that reads
        it, as if each were asked alone; in a batch, queries close to each other share most of this.

        Raises what `query` does.
        """
        windows = query_boxes(boxes, self._dims)
        found: dict[str, Any] = self._read(explain.of_windows, np.atleast_2d(windows), as_predicate(predicate))
        return found

    def explain_nearest(self, points: Boxes, k: int = 1, max_distance: float | None = None) -> dict[str, Any]:
        """What `nearest` with these points costs on any machine, told as `explain` tells it of `query`.

        Raises what `nearest` does.
        """
        count = as_neighbours(k)
        limit = as_distance(max_distance)
        given = self._points(points)[0]
        found: dict[str, Any] = self._read(explain.of_nearest, given, count, limit)
        return found

    def join(self, other: Reader, predicate: Predicate | None = None) -> Ids:
        """The pairs of records, one of this tree and one of another, whose boxes fulfil a predicate.

        other: a tree, a snapshot or a tree inside a transaction, with the same number of dimensions; of any store. Two
        trees of one Runtime are read at one epoch. predicate: what this tree's box, the subject, does with the other's:
        "intersects" (also when None), "contains" or "covers", "within" or "covered_by", as in `query`.

        Returns (2, n) int64: id of this tree, id of the other, in no particular order; records stored twice come twice.
        A tree joined with itself pairs each record with itself, and gives each other pair in both directions.

        Raises TypeError for what is no tree, DimensionError for other dimensions, ValueError for an unknown predicate,
        ClosedError, MemoryError. The algorithm is that of Brinkhoff, Kriegel and Seeger (SIGMOD 1993).
        """
        number = as_join_predicate("intersects" if predicate is None else predicate)
        if not isinstance(other, Reader):
            raise TypeError(f"a tree is joined with a tree or a snapshot, not with {type(other).__name__}")
        if self._dims != other._dims:
            raise DimensionError(f"got a tree of {other._dims} dimensions, expected {self._dims}")
        pairs: Ids = self._read_both(other, join.join, number)
        return pairs

    def _points(self, given: Any) -> tuple[Floats, Ids | None, bool]:
        """The points that aren't missing, (m, d), the rows that they were in (None: all), and whether one was given."""
        missing = None
        if not is_plain(given):
            given, missing = rows_given(given, self._dims, True)
        if missing is None or not np.any(missing):
            points = finite_points(given, self._dims)
            return np.atleast_2d(points), None, points.ndim == 1
        there = np.flatnonzero(~np.atleast_1d(missing))
        return finite_points(np.atleast_2d(given)[there], self._dims), there, np.ndim(missing) == 0

    def _read_both(self, other: Reader, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(store, state, other's store, other's state, *arguments), with both states protected meanwhile."""
        if other is self:
            return self._read(lambda store, state: function(store, state, store, state, *arguments))
        mine, its = self._view, other._view
        if mine is not None and its is not None and mine.session.current() is its.session.current():
            with mine.session.read() as (store, published):
                return function(store, mine.state_at(published), store, its.state_at(published), *arguments)
        return other._read(
            lambda its_store, its_state: self._read(
                lambda store, state: function(store, state, its_store, its_state, *arguments)
            )
        )

    def items(self) -> tuple[Ids, Floats]:
        """All records, as (ids (n,) int64, boxes (n, 2*d) float64) in matching, unspecified order; copies."""
        ids, boxes = self._read(search.items)
        return ids, boxes

    def __len__(self) -> int:
        """Number of records."""
        return int(self._read(_count_of))

    def __contains__(self, record: object) -> bool:
        """Whether (id, box) is a record; boxes compare by value, so that 0.0 equals -0.0."""
        if not isinstance(record, tuple) or len(record) != 2:
            raise TypeError(f"a record is a tuple (id, box), not {type(record).__name__}")
        number = one_id(record[0])
        box = query_boxes(record[1], self._dims)
        if box.ndim != 1:
            raise DimensionError(f"got {len(box)} boxes, expected one")
        return bool(self._read(search.holds, int(number[0]), box))

    @property
    def bounds(self) -> Floats | None:
        """The smallest box around all records, (2*d,) float64; None when there are none."""
        bounds: Floats | None = self._read(_bounds_of)
        return bounds

    @property
    def dims(self) -> int:
        """Number of dimensions."""
        return int(self._read(_dims_of))

    @property
    def height(self) -> int:
        """Levels of pages; 0 when empty."""
        return int(self._read(_height_of))

    @property
    def epoch(self) -> int:
        """The epoch that is read. It grows with every commit to any tree in the directory."""
        return self._epoch()

    def check(self) -> None:
        """Verifies the whole tree: containment, exact bounds, reachability, levels, counts, checksums.

        Reads every page. Raises CorruptionError at the first thing wrong.
        """
        self._read(inspection.check)

    def stats(self) -> dict[str, Any]:
        """What the tree is made of; reads every page.

        Keys: records, height, nodes, supernodes, bytes, epoch, and levels, a list of dicts with level, nodes, entries,
        fill, overlap, supernodes, blocks, page_fill, supernode_fill.
        """
        return {**self._read(inspection.stats), "epoch": self._epoch()}

    @abstractmethod
    def _epoch(self) -> int:
        """The epoch that is read."""


def _nearest(store: Store, state: TreeState, threads: int, points: Floats, k: int, limit: float) -> Any:
    nearest.require_room(state, len(points), k, limit)
    return in_threads(store, state, threads, nearest.nearest, points, k, limit)


def _count_of(_: Store, state: TreeState) -> int:
    return state.count


def _bounds_of(_: Store, state: TreeState) -> Floats | None:
    return state.bounds


def _dims_of(_: Store, state: TreeState) -> int:
    return state.dims


def _height_of(_: Store, state: TreeState) -> int:
    return state.height
