"""Arguments: what users pass besides boxes and ids, checked and converted to one form."""

from __future__ import annotations

import math
import operator
import os
import sys
from typing import Any, TypeAlias

from xtree.config import Config
from xtree.errors import DimensionError

__all__ = [
    "AnyPath",
    "Boxes",
    "MAX_DIMS",
    "QUERY_PREDICATES",
    "as_config",
    "as_dims",
    "as_distance",
    "as_join_predicate",
    "as_name",
    "as_neighbours",
    "as_output",
    "as_path",
    "as_predicate",
    "as_threads",
    "as_timeout",
]

Boxes: TypeAlias = Any  # arrays, lists, tables, geometries: docs/input.md
AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

MAX_DIMS = 64
OUTPUTS = ("pairs", "csr")
INTERSECTS, INSIDE, AROUND = 0, 1, 2  # how the record's box, or the left box of a join, lies to the other one
QUERY_PREDICATES = {
    "intersects": INTERSECTS,
    "contains": INSIDE,
    "covers": INSIDE,
    "within": AROUND,
    "covered_by": AROUND,
}
JOIN_PREDICATES = {
    "intersects": INTERSECTS,
    "contains": AROUND,
    "covers": AROUND,
    "within": INSIDE,
    "covered_by": INSIDE,
}


def as_config(config: Any) -> Config:
    """A Config; None means the default settings. Raises TypeError for anything else."""
    if config is None:
        return Config()
    if not isinstance(config, Config):
        raise TypeError(f"config must be an xtree.Config, not {type(config).__name__}")
    return config


def as_dims(dims: Any) -> int:
    """A number of dimensions. Raises DimensionError outside 1..64, TypeError for anything but an integer."""
    value = _integer(dims, "dims")
    if not 1 <= value <= MAX_DIMS:
        raise DimensionError(f"dims must be in 1 .. {MAX_DIMS}, not {value}")
    return value


def as_predicate(predicate: Any) -> int:
    """The number of a query's predicate; its subject is the query box. Raises ValueError for an unknown one."""
    return _numbered(predicate, QUERY_PREDICATES)


def as_join_predicate(predicate: Any) -> int:
    """The number of a join's predicate; its subject is the left box. Raises ValueError for an unknown one."""
    return _numbered(predicate, JOIN_PREDICATES)


def as_output(output: Any) -> str:
    """The form of a batch's result. Raises ValueError for any but "pairs" and "csr"."""
    if not isinstance(output, str) or output not in OUTPUTS:
        raise ValueError(f"output must be {' or '.join(map(repr, OUTPUTS))}, not {output!r}")
    return output


def as_neighbours(k: Any) -> int:
    """A number of neighbours, capped at what int64 holds. Raises ValueError below 1, TypeError for a non-integer."""
    value = _integer(k, "k")
    if value < 1:
        raise ValueError(f"k must be at least 1, not {value}")
    return min(value, sys.maxsize)


def as_distance(max_distance: Any) -> float:
    """A largest distance; None means infinity. Raises ValueError for NaN or below 0, TypeError for a non-number."""
    if max_distance is None:
        return math.inf
    value = _real(max_distance, "max_distance")
    if not value >= 0.0:
        raise ValueError(f"max_distance must be at least 0, not {value}")
    return value


def as_threads(threads: Any) -> int:
    """A number of threads; None means one for each processor that the process may use. Raises ValueError, TypeError."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    value = _integer(threads, "threads")
    if value < 1:
        raise ValueError(f"threads must be at least 1, not {value}")
    return value


def as_timeout(timeout: Any) -> float | None:
    """Seconds to wait; None means for ever. Raises ValueError for NaN or below 0, TypeError for a non-number."""
    if timeout is None:
        return None
    value = _real(timeout, "timeout")
    if not value >= 0.0:
        raise ValueError(f"timeout must be at least 0 seconds, not {value}")
    return None if value == math.inf else value


def as_name(name: Any) -> str:
    """The name of a tree. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a tree's name must be a str, not {type(name).__name__}")
    if not name:
        raise ValueError("a tree's name must not be empty")
    return str(name)


def as_path(path: Any) -> str:
    """A path of the file system: str, bytes or os.PathLike. Raises TypeError, ValueError."""
    text = os.fsdecode(path)
    if not text:
        raise ValueError("the path of an index must not be empty")
    return text


def _numbered(predicate: Any, numbers: dict[str, int]) -> int:
    number = numbers.get(predicate) if isinstance(predicate, str) else None
    if number is None:
        raise ValueError(f"predicate must be {' or '.join(map(repr, numbers))}, not {predicate!r}")
    return number


def _integer(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    try:
        return operator.index(value)
    except TypeError:  # an array
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None


def _real(value: Any, what: str) -> float:
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except TypeError:  # an array
        raise TypeError(f"{what} must be a number, not {type(value).__name__}") from None
    except OverflowError:  # an integer beyond the range of float
        return math.inf if value > 0 else -math.inf
