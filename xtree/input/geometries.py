"""Geometries: those of shapely and geopandas, read as their bounds.

A geometry is one box; an array, list or GeoSeries of them, or a GeoDataFrame with its active geometry, is many. Only x
and y count. `None` and empty geometries have no bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtree.errors import DimensionError
from xtree.input.libraries import is_a, loaded

__all__ = ["geometry_bounds"]

Bounds = tuple[NDArray[np.float64], NDArray[np.bool_]]


def geometry_bounds(given: Any, points: bool) -> Bounds | None:
    """Bounds (n, 4), or (4,) of one geometry, and which of them are missing, (n,) or (); None for other things.

    points: only points will do, and their coordinates (n, 2), or (2,), are returned. Raises TypeError for an array that
    holds other things besides geometries, DimensionError for a geometry other than a point.
    """
    geometries = _geometries(given)
    if geometries is None:
        return None
    shapely = loaded("shapely")
    missing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    bounds = np.asarray(shapely.bounds(geometries), dtype=np.float64)
    if not points:
        return bounds, missing
    other = ~missing & (shapely.get_type_id(geometries) != 0)
    if other.any():
        row = int(np.flatnonzero(other)[0])
        where, kind = ("", geometries) if np.ndim(geometries) == 0 else (f"row {row} is ", geometries[row])
        raise DimensionError(f"expected points, {where or 'got '}a {kind.geom_type}; from_boxes and query take bounds")
    return bounds[..., :2], missing


def _geometries(given: Any) -> Any:
    """One geometry, or an array of geometries and None, (n,); None for other things."""
    shapely = loaded("shapely")
    if shapely is None or not hasattr(shapely, "is_valid_input"):  # shapely 2 has it
        return None
    if is_a(given, "shapely", "Geometry"):
        return given
    if is_a(given, "geopandas", "GeoDataFrame"):
        if given.active_geometry_name is None:  # a table like any other
            return None
        given = given.geometry
    if is_a(given, "geopandas", "GeoSeries") or _holds_objects(given):
        given = np.asarray(given, dtype=object)
    elif isinstance(given, (list, tuple)) and any(is_a(item, "shapely", "Geometry") for item in given):
        items, given = given, np.empty(len(given), dtype=object)
        given[:] = items
    else:
        return None
    fine = shapely.is_valid_input(given)
    if given.ndim != 1 or not (fine.all() or shapely.is_geometry(given).any()):
        return None
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise TypeError(f"row {row} is a {type(given[row]).__name__}, expected a geometry or None")
    return given


def _holds_objects(given: Any) -> bool:
    """An array or pandas column of Python objects, or of geopandas' own type."""
    if is_a(given, "pandas", "Series"):
        return given.dtype == object or str(given.dtype) == "geometry"
    return (isinstance(given, np.ndarray) and given.dtype == object) or is_a(given, "geopandas.array", "GeometryArray")
