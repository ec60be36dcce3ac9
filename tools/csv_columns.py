"""CSV columns: which columns of a file hold the boxes or points, and which the ids.

They are found by their names, as in tables in memory (`xtree.input.column_names`), unless the caller chooses them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from xtree.errors import DimensionError
from xtree.input.column_names import box_columns, point_columns, shown_names
from xtree.tools.table_error import TableError

__all__ = ["Columns", "Wanted", "choose_columns"]

IDS = ("id", "fid", "gid", "ogc_fid", "objectid", "osm_id", "osmid", "feature_id", "row_id")
HOW_TO_CHOOSE = "choose them: --box MINX,MINY,MAXX,MAXY, or --x NAME --y NAME"


class Wanted(NamedTuple):
    """Columns that the caller has chosen, by name: those of boxes or of points, and that of ids.

    Those that are empty are found by the rules. "-" as id means that there is none: the records are numbered.
    """

    box: tuple[str, ...] = ()
    point: tuple[str, ...] = ()
    id: str = ""


class Columns(NamedTuple):
    """The places of columns in their file: those of minima, then maxima, or of a point's coordinates; that of ids."""

    header: list[str]
    coordinates: list[int]
    points: bool
    id: int | None

    def names(self) -> list[str]:
        """The names of the coordinates' columns, in the order of the axes."""
        return [self.header[place] for place in self.coordinates]


def choose_columns(header: Sequence[str], wanted: Wanted) -> Columns:
    """The columns of a file with this first line. Raises TableError where the choice isn't clear."""
    names = [name.strip() for name in header]
    ids = _ids(names, wanted.id)
    if wanted.box and wanted.point:
        raise TableError("--box names the bounds of boxes, --x and --y coordinates of points: one of them only")
    chosen = wanted.box or wanted.point
    if chosen:
        if wanted.box and len(wanted.box) % 2:
            raise TableError(f"--box takes all minima, then all maxima: an even number of columns, not {len(chosen)}")
        return Columns(names, [_place(names, name) for name in chosen], not wanted.box, ids)
    try:
        boxes = box_columns(names)
        points = point_columns(names) if boxes is None else None
    except DimensionError as error:
        raise TableError(f"{error}; {HOW_TO_CHOOSE}") from error
    if boxes is None and (points is None or len(points) < 2):
        raise TableError(_unclear(names))
    return Columns(names, boxes or points or [], boxes is None, ids)


def _ids(names: list[str], wanted: str) -> int | None:
    if wanted == "-":
        return None
    if wanted:
        return _place(names, wanted)
    folded = [name.lower() for name in names]
    return next((folded.index(name) for name in IDS if name in folded), None)


def _place(names: list[str], wanted: str) -> int:
    """The column of a name, in any case; if several names differ in case only, the one that matches exactly."""
    exact = [place for place, name in enumerate(names) if name == wanted]
    found = exact or [place for place, name in enumerate(names) if name.lower() == wanted.lower()]
    if len(found) != 1:
        how_many = "two columns are" if found else "no column is"
        raise TableError(f"{how_many} called {wanted!r}: there are {shown_names(names)}")
    return found[0]


def _unclear(names: list[str]) -> str:
    folded = {name.lower() for name in names}
    pairs = [name for name in names if re.fullmatch(r"min.+", name.lower()) and "max" + name.lower()[3:] in folded]
    known = "expected a first line with columns like minx,miny,maxx,maxy or lon,lat or x,y"
    if pairs:
        return f"{known}; {shown_names(pairs)} might be axes or not; {HOW_TO_CHOOSE}"
    return f"{known}, got {','.join(names)[:200]}; {HOW_TO_CHOOSE}"
