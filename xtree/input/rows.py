"""Inputs: the tables, columns and geometries that users pass, turned into arrays of numbers.

`conversion` calls this only for what isn't a list of numbers or a numpy array of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtree.errors import InvalidBoxError
from xtree.input.columns import column_numbers, column_values, is_column
from xtree.input.frames import frame_numbers
from xtree.input.geometries import geometry_bounds

__all__ = ["ids_given", "present", "rows_given", "rows_to_ask", "rows_to_store"]

Mask = NDArray[np.bool_]


def rows_given(given: Any, dims: int | None, points: bool = False) -> tuple[Any, Any]:
    """Numbers, or what will become them, and a mask of the rows that are missing or empty; None where none can be.

    Raises DimensionError, TypeError, InvalidBoxError.
    """
    found: tuple[Any, Any] | None = geometry_bounds(given, points)
    if found is None:
        found = frame_numbers(given, dims, points)
    if found is None:
        return (column_numbers(given) if is_column(given) else given), None
    return found


def rows_to_ask(given: Any, dims: int) -> Any:
    """Boxes or points to ask with; what is missing or empty lies beyond every record."""
    rows, missing = rows_given(given, dims)
    if missing is not None and np.any(missing):
        rows = np.array(rows)
        rows[missing] = np.inf
    return rows


def rows_to_store(given: Any, dims: int | None, points: bool = False) -> Any:
    """Boxes or points to keep. Raises InvalidBoxError for one that is missing or empty."""
    rows, missing = rows_given(given, dims, points)
    if missing is not None and np.any(missing):
        if np.ndim(missing) == 0:
            raise InvalidBoxError("invalid box: it is missing or empty")
        row = int(np.flatnonzero(missing)[0])
        raise InvalidBoxError(f"invalid box: row {row} is missing or empty; skip_empty=True leaves such rows out")
    return rows


def present(given: Any, dims: int | None, points: bool = False) -> tuple[Any, Mask | None]:
    """The rows that are neither missing nor empty, and a mask of them; None where all are there.

    In arrays of numbers a row is missing when it is all NaN, as shapely.bounds gives it.
    """
    rows, missing = rows_given(given, dims, points)
    if missing is None and isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.ndim == 2 and rows.shape[1]:
        missing = np.isnan(rows).all(axis=1)
    if missing is None or np.ndim(missing) == 0 or not np.any(missing):
        return rows, None
    return np.asarray(rows)[~missing], ~missing


def ids_given(given: Any) -> Any:
    """Ids, also those in a column. Raises ValueError where one is missing."""
    if not is_column(given):
        return given
    values, missing = column_values(given)
    if missing is not None:
        raise ValueError(f"the id at index {int(np.flatnonzero(missing)[0])} is missing")
    return values
