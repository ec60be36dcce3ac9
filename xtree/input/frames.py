"""Frames: pandas, polars and Arrow tables, and rows of them, as boxes or points, read by the names of their columns.

What names say is in `column_names`. A table without such names is read by position, but only when it is exactly as wide
as what is asked for, or when its columns have no names, only numbers. The index of a frame is never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtree.errors import DimensionError, InvalidBoxError
from xtree.input.column_names import box_columns, point_columns, shown_names
from xtree.input.columns import column_numbers
from xtree.input.libraries import is_a
from xtree.input.real_numbers import real_numbers

__all__ = ["frame_numbers"]


class Frame(NamedTuple):
    """A table with named columns; `one`: a single row."""

    names: list[Any]
    column: Callable[[int], NDArray[np.float64]]  # the numbers of one column
    one: bool


def frame_numbers(given: Any, dims: int | None, points: bool) -> tuple[Any, Any] | None:
    """Boxes (n, 2*d) or points (n, d) of a table, (2*d,) or (d,) of one row, and which are missing; None for no table.

    dims: None where the table decides. points: only points will do. A row is missing when none of its values is there.
    Raises DimensionError that names the columns, TypeError, InvalidBoxError.
    """
    frame = _frame(given)
    if frame is None:
        return None
    places = _places(frame.names, dims, points)
    columns = []
    for place in places:
        try:
            columns.append(frame.column(place))
        except (TypeError, InvalidBoxError) as error:
            raise type(error)(f"column {frame.names[place]!r}: {error}") from None
    rows = np.column_stack(columns) if columns else np.empty((0, 0))
    missing = np.asarray(np.isnan(rows).all(axis=1))
    return (rows[0], missing[0]) if frame.one else (rows, missing)


def _frame(given: Any) -> Frame | None:
    if is_a(given, "pandas", "DataFrame"):
        return Frame(list(given.columns), lambda place: column_numbers(given.iloc[:, place]), False)
    if is_a(given, "polars", "DataFrame"):
        return Frame(list(given.columns), lambda place: column_numbers(given.to_series(place)), False)
    if is_a(given, "pyarrow", "Table", "RecordBatch"):
        return Frame(list(given.schema.names), lambda place: column_numbers(given.column(place)), False)
    if is_a(given, "polars", "LazyFrame"):
        raise TypeError("a polars LazyFrame holds no values yet: pass its collect()")
    if is_a(given, "pandas", "Series") and any(isinstance(label, str) for label in given.index):
        return Frame(list(given.index), lambda place: real_numbers([given.iloc[place]]), True)
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return Frame(list(given._fields), lambda place: real_numbers([given[place]]), True)
    if isinstance(given, (list, tuple)) and len(given) and hasattr(given[0], "_fields"):
        return _of_rows(given)
    return None


def _of_rows(rows: Sequence[Any]) -> Frame:
    """A table of named tuples. Raises DimensionError for a row of another kind: its values may mean something else."""
    kind = type(rows[0])
    other = next((row for row, given in enumerate(rows) if type(given) is not kind), None)
    if other is not None:
        raise DimensionError(f"row {other} is a {type(rows[other]).__name__}, row 0 a {kind.__name__}")
    return Frame(list(kind._fields), lambda place: real_numbers([row[place] for row in rows]), False)


def _places(names: list[Any], dims: int | None, points: bool) -> list[int]:
    """The columns to read, minima before maxima."""
    boxes = box_columns(names)
    if points and boxes is not None and point_columns(names) is None:
        raise DimensionError(f"expected points, got the columns of boxes, {shown_names(names)}")
    places = boxes if boxes is not None and not points else point_columns(names)
    if places is not None:
        axes = len(places) // 2 if places is boxes else len(places)
        if dims is not None and axes != dims:
            named = shown_names(names[place] for place in places)
            raise DimensionError(f"the columns {named} have {axes} axes, expected {dims}")
        return places
    if not any(isinstance(name, str) for name in names):
        return list(range(len(names)))
    if dims is None or len(names) not in ((dims,) if points else (dims, 2 * dims)):
        wanted = "x and y, or lon and lat" if points else "minx, miny, maxx and maxy, or x and y, or lon and lat"
        raise DimensionError(
            f"the columns {shown_names(names)} don't say which of them to take: expected names like {wanted}; or pass "
            "those that you choose as an array, minima before maxima"
        )
    return list(range(len(names)))
