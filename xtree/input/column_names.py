"""Column names: which columns of a table are the bounds of boxes, or the coordinates of points, and of which axis.

Names count; their order and their case don't: `minx`, `min_x`, `xmin`, `x_min`, `left`, `west` are all the least x.
Longitude is x and latitude y. Axes may be numbered too: min0, max0, min1 …
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from xtree.errors import DimensionError

__all__ = ["box_columns", "point_columns", "shown_names"]

AXES = {"x": 0, "lon": 0, "lng": 0, "long": 0, "longitude": 0, "y": 1, "lat": 1, "latitude": 1, "z": 2}
SIDES = {  # (least or most, axis); they count where all four of a line are there
    "left": (0, "x"), "bottom": (0, "y"), "right": (1, "x"), "top": (1, "y"),
    "west": (0, "lon"), "south": (0, "lat"), "east": (1, "lon"), "north": (1, "lat"),
}  # fmt: skip
FOURS = ({"left", "bottom", "right", "top"}, {"west", "south", "east", "north"})
AXIS = "|".join(sorted(AXES, key=len, reverse=True)) + "|[0-9]{1,2}"
BOUND = re.compile(rf"(?P<first>min|max)[ _]?(?P<axis>{AXIS})|(?P<axis2>{AXIS})[ _]?(?P<last>min|max)")
SHOWN = 12


def box_columns(names: Iterable[object]) -> list[int] | None:
    """The places of the columns that hold boxes: of all minima, then of all maxima, each in the order of the axes.

    None where no name is that of a bound. Raises DimensionError where names contradict each other: two for one bound, a
    minimum without its maximum, an axis left out.
    """
    folded = _folded(names)
    present = set(folded.values())
    sides = set().union(*(four for four in FOURS if four <= present))
    found: list[tuple[int, str, int]] = []  # least or most, axis, place
    for place, name in folded.items():
        if name in sides:
            side, axis = SIDES[name]
            found.append((side, axis, place))
        elif match := BOUND.fullmatch(name):
            word = match["first"] or match["last"]
            found.append((int(word == "max"), match["axis"] or match["axis2"], place))
    if not found:
        return None
    low = [(axis, place) for side, axis, place in found if side == 0]
    high = [(axis, place) for side, axis, place in found if side == 1]
    places = _by_axis(low, folded, "the minimum") + _by_axis(high, folded, "the maximum")
    if {axis for axis, _ in low} != {axis for axis, _ in high}:
        named = shown_names(folded[place] for place in sorted(places))
        raise DimensionError(f"the columns {named} are not the minima and maxima of the same axes")
    return places


def point_columns(names: Iterable[object]) -> list[int] | None:
    """The places of the columns that hold points, in the order of the axes: x, y, z or lon, lat; None without any.

    Raises DimensionError where names contradict each other: two for one axis, or an axis left out.
    """
    folded = _folded(names)
    found = [(name, place) for place, name in folded.items() if name in AXES]
    return _by_axis(found, folded, "the coordinate") if found else None


def shown_names(names: Iterable[object]) -> str:
    """Names of columns for a message, not too many."""
    every = [repr(name) for name in names]
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def _folded(names: Iterable[object]) -> dict[int, str]:
    return {place: name.strip().lower() for place, name in enumerate(names) if isinstance(name, str)}


def _by_axis(found: list[tuple[str, int]], folded: dict[int, str], what: str) -> list[int]:
    """The places in the order of their axes, which must be all different and without a gap."""
    places: dict[int, int] = {}
    least = min((int(axis) for axis, _ in found if axis.isdigit()), default=0)
    for axis, place in found:
        number = int(axis) - min(least, 1) if axis.isdigit() else AXES[axis]  # counted from 0, or from 1
        if number in places:
            both = f"{folded[places[number]]!r} and {folded[place]!r}"
            raise DimensionError(f"the columns {both} are both {what} of one axis")
        places[number] = place
    if sorted(places) != list(range(len(places))):
        named = shown_names(folded[place] for _, place in found)
        raise DimensionError(f"the columns {named} leave out {what} of an axis")
    return [places[axis] for axis in range(len(places))]
