"""Columns: one column of a pandas, polars or Arrow table as numbers, with what is missing marked.

Integers stay integers until they are known to have an exact value in float64: columns with missing values, which the
libraries themselves would turn into floats, are read without these values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtree.input.libraries import is_a
from xtree.input.real_numbers import real_numbers

__all__ = ["column_numbers", "column_values", "is_column"]

Mask = NDArray[np.bool_]


def is_column(given: object) -> bool:
    """Whether it is a column of one of the libraries."""
    return (
        is_a(given, "pandas", "Series", "Index")
        or is_a(given, "pandas.api.extensions", "ExtensionArray")
        or is_a(given, "polars", "Series")
        or is_a(given, "pyarrow", "Array", "ChunkedArray")
    )


def column_values(column: Any) -> tuple[NDArray[Any], Mask | None]:
    """The values of a column, in its own type, zero where they are missing, and a mask of these; None if none is."""
    if is_a(column, "polars", "Series"):
        return _filled(column.drop_nulls().to_numpy(), column.is_null().to_numpy() if column.null_count() else None)
    if is_a(column, "pyarrow", "Array", "ChunkedArray"):
        missing = np.asarray(column.is_null()) if column.null_count else None
        return _filled(np.asarray(column.drop_null()), missing)
    if isinstance(column.dtype, np.dtype):
        return np.asarray(column), None
    missing = np.asarray(column.isna())
    kept = column[~missing] if missing.any() else column
    plain = getattr(column.dtype, "numpy_dtype", None)  # of nullable and Arrow-backed ones
    values = np.asarray(kept) if plain is None else kept.to_numpy(dtype=plain)
    return _filled(values, missing if missing.any() else None)


def column_numbers(column: Any) -> NDArray[np.float64]:
    """A column as float64, NaN where a value is missing. Raises TypeError, InvalidBoxError for a large integer."""
    values, missing = column_values(column)
    numbers = real_numbers(values)
    if missing is not None:
        numbers = numbers.copy() if numbers is values else numbers
        numbers[missing] = np.nan
    return numbers


def _filled(present: NDArray[Any], missing: Mask | None) -> tuple[NDArray[Any], Mask | None]:
    """Values spread over the rows that have one."""
    if missing is None:
        return present, None
    values = np.zeros(len(missing), present.dtype)
    values[~missing] = present
    return values, missing
