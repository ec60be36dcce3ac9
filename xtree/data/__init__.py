"""Small real data that ships with xtree: bounding boxes of countries and positions of cities (see README.md)."""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import NamedTuple

import numpy as np

__all__ = ["Places", "cities", "coasts", "countries"]


class Places(NamedTuple):
    """Named places: ids (n,) int64, boxes (n, 4) float64 in degrees (minx, miny, maxx, maxy), and a name for each."""

    ids: np.ndarray
    boxes: np.ndarray
    names: list[str]


def countries() -> Places:
    """The bounding boxes of 177 countries."""
    return _read("naturalearth_countries.csv", ("minx", "miny", "maxx", "maxy"))


def cities() -> Places:
    """The positions of 243 cities, as boxes of zero extent."""
    return _read("naturalearth_cities.csv", ("lon", "lat", "lon", "lat"))


def coasts() -> list[np.ndarray]:
    """The coastlines of the world, 128 lines, each (n, 2) float64 of longitude and latitude in degrees."""
    text = (files(__name__) / "naturalearth_coast.csv").read_text(encoding="utf-8")
    rows = np.loadtxt(text.splitlines(), delimiter=",", skiprows=1)
    return np.split(rows[:, 1:], np.flatnonzero(np.diff(rows[:, 0])) + 1)


def _read(name: str, columns: tuple[str, ...]) -> Places:
    text = (files(__name__) / name).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return Places(
        ids=np.array([int(row["id"]) for row in rows], dtype=np.int64),
        boxes=np.array([[float(row[column]) for column in columns] for row in rows]),
        names=[row["name"] for row in rows],
    )
