"""Where the labels of a map go: beside their points, but not on another label or on a point.

Each label tries places around its point, farther and farther away, until one is free; a tree of the places that are
taken tells which are free. The upper right comes first, as in Imhof, "Positioning Names on Maps", The American
Cartographer 2 (1975).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from xtree.tree import XTree

__all__ = ["label_boxes"]

CHARACTER = 0.58  # of the font size: the average width of one, rounded up
DIRECTIONS = ((1, -1), (1, 1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1))  # upper right first
DISTANCES = (5.0, 12.0, 20.0, 30.0, 42.0, 56.0, 72.0, 90.0)  # in pixels
GAP = 1.0

Box = tuple[float, float, float, float]


def label_boxes(
    points: np.ndarray, texts: Sequence[str], size: float, area: Box, avoid: Iterable[Box] = ()
) -> list[Box]:
    """The box of each label, (left, top, right, bottom) in pixels, y downwards.

    points: (n, 2), what the labels belong to. size: of the font. area: where labels may be. avoid: boxes that no label
    is to cover, besides the other labels. A label that finds no free place within 90 pixels gets its first place.
    """
    taken = XTree(2)
    for number, box in enumerate(avoid):
        taken.insert(-1 - number, box)
    found = []
    for number, ((x, y), text) in enumerate(zip(points, texts, strict=True)):
        every = list(_places(float(x), float(y), len(text) * CHARACTER * size, size))
        free = (box for box in every if _inside(box, area) and not taken.count(box))
        box = next(free, every[0])
        found.append(box)
        taken.insert(number, (box[0] - GAP, box[1] - GAP, box[2] + GAP, box[3] + GAP))
    return found


def _places(x: float, y: float, width: float, height: float) -> Iterator[Box]:
    for distance in DISTANCES:
        for across, down in DIRECTIONS:
            left = x + across * distance - width * (1 - across) / 2
            top = y + down * distance - height * (1 - down) / 2
            yield left, top, left + width, top + height


def _inside(box: Box, area: Box) -> bool:
    return box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
