"""The demo: real places, a million boxes, and a writer that is killed in the middle of its work.

Everything shown is checked against brute force on the way.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import xtree
from xtree.data import Places, cities, coasts, countries
from xtree.tools.demo_writer import BATCH, batch
from xtree.tools.map_svg import MapSvg

__all__ = ["run"]

WINDOW = (5.0, 42.0, 20.0, 52.0)  # Central Europe, in degrees
KILLS = 3
CHECKED_WINDOWS = 100  # of the million boxes' windows, compared with brute force
Say = Callable[..., Any]


def run(out: Path, boxes: int = 1_000_000, kills: int = KILLS, say: Say = print) -> dict[str, Any]:
    """Runs all parts with `out` as working directory and returns what each measured; `ok` says that all checks held."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("places.xtree", "million.xtree", "crash.xtree"):
        shutil.rmtree(out / name, ignore_errors=True)
    started = perf_counter()
    say(f"xtree {xtree.__version__}: a spatial index that keeps its promises when the process is killed")
    result: dict[str, Any] = {"places": show_places(out, say), "million": show_million(out, boxes, say)}
    result["crash"] = show_crash(out, kills, say)
    result["picture"] = str(out / "map.svg")
    result["ok"] = all(result[part]["ok"] for part in ("places", "million", "crash"))
    verdict = "Everything agreed with brute force." if result["ok"] else "SOMETHING DISAGREED: see above."
    say(f"\n{verdict} Total {perf_counter() - started:.1f} s. A picture for your browser: {result['picture']}")
    return result


def intersecting(boxes: np.ndarray, window: Any) -> np.ndarray:
    """Brute force: the positions of the boxes that touch the window."""
    d = boxes.shape[1] // 2
    window = np.asarray(window, dtype=np.float64)
    return np.flatnonzero((boxes[:, :d] <= window[d:]).all(axis=1) & (boxes[:, d:] >= window[:d]).all(axis=1))


def agrees(ids: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two answers hold the same ids; their order means nothing."""
    return np.array_equal(np.sort(ids), np.sort(expected))


# Part 1: real places.


def show_places(out: Path, say: Say) -> dict[str, Any]:
    """Countries and cities as two trees of one directory; a window, a point, the nearest; the picture."""
    land, towns = countries(), cities()
    say(f"\n1. Real places: the boxes of {len(land.ids)} countries and {len(towns.ids)} cities (Natural Earth)")
    started = perf_counter()
    with xtree.Runtime(out / "places.xtree", mode="x") as runtime:
        runtime.tree("countries", dims=2)
        runtime.tree("cities", dims=2)
        with runtime.transaction(trees=["cities", "countries"]) as tx:
            tx.tree("countries").insert_many(land.ids, land.boxes)
            tx.tree("cities").insert_many(towns.ids, towns.boxes)
        say(f"   two trees in one directory, filled by one atomic commit: {milliseconds(perf_counter() - started)}")
        paris = towns.boxes[towns.names.index("Paris"), :2]
        inside = runtime.tree("cities").query(WINDOW)
        around = runtime.tree("countries").query(paris)
        near, distances = runtime.tree("cities").nearest(paris, k=5, return_distance=True)
    gap = np.hypot(*(towns.boxes[:, :2] - paris).T)
    ok = (
        agrees(inside, towns.ids[intersecting(towns.boxes, WINDOW)])
        and agrees(around, land.ids[intersecting(land.boxes, np.tile(paris, 2))])
        and np.array_equal(distances, np.sort(gap)[:5])
    )
    say(f"   cities between 5 and 20 east, 42 and 52 north: {names(towns, inside)}")
    say(f"   countries whose box contains Paris: {names(land, around)}")
    say(f"   the cities nearest to Paris: {names(towns, near[1:], order=False)}")
    say(f"   {verdict(ok)}")
    draw(out / "map.svg", land, towns, inside)
    return {"countries": len(land.ids), "cities": len(towns.ids), "in_window": len(inside), "ok": ok}


def names(places: Places, ids: np.ndarray, order: bool = True) -> str:
    """The names of places, alphabetically unless their order has a meaning."""
    found = [places.names[i] for i in ids.tolist()]
    return ", ".join(sorted(found) if order else found)


def draw(path: Path, land: Places, towns: Places, inside: np.ndarray) -> None:
    """The map: coasts, country boxes, cities, the query window and what it found."""
    picture = MapSvg(view=(-12.0, 35.0, 38.0, 60.0))
    picture.lines(coasts(), stroke="#6e7781", width=1.2)
    picture.boxes(land.boxes, stroke="#afb8c1", opacity=0.04)
    picture.boxes([WINDOW], stroke="#cf222e", opacity=0.1, width=2.5)
    picture.points(towns.boxes[:, :2], fill="#57606a", radius=2.5)
    picture.points(towns.boxes[inside, :2], fill="#cf222e", radius=4.0)
    found = [towns.names[i] for i in inside.tolist()]
    picture.labels(towns.boxes[inside, :2], found, avoid=towns.boxes[:, :2])
    legend = "grey: the boxes of countries, and cities; red: a query window and the cities it found"
    picture.label(-11.7, 35.3, legend, size=14)
    picture.save(path)


# Part 2: a million boxes.


def show_million(out: Path, n: int, say: Say) -> dict[str, Any]:
    """Bulk load into a durable index, reopen it, ask it, check the answers."""
    say(f"\n2. {n:,} generated boxes in the unit square, in an index on disk")
    rng = np.random.default_rng(1)
    boxes = small_boxes(rng, n, 0.5 / n**0.5)
    path = out / "million.xtree"
    _, built = timed(lambda: xtree.XTree.from_boxes(boxes, path=path).close())
    size = sum(file.stat().st_size for file in path.iterdir())
    say(f"   bulk load, synced and closed: {built:.2f} s, {size / n:.0f} bytes a record")
    started = perf_counter()
    with xtree.open(path) as tree:
        first = len(tree.query(boxes[0]))
        opened = perf_counter() - started
        say(f"   opened again, first answer ({first} boxes) after {milliseconds(opened)}")
        result = ask(tree, boxes, rng, say)
        more = small_boxes(rng, 10_000, 0.5 / n**0.5)
        _, inserted = timed(lambda: tree.insert_many(np.arange(n, n + len(more)), more))
        tree.check()
    say(f"   {len(more):,} more inserted in one durable commit: {milliseconds(inserted)}")
    say(f"   {verdict(result['ok'])} ({CHECKED_WINDOWS} windows against all {n:,} boxes; check() verified every page)")
    return {
        "records": n,
        "build_seconds": built,
        "bytes_a_record": size / n,
        "open_seconds": opened,
        "insert_10000_seconds": inserted,
        **result,
    }


def ask(tree: xtree.XTree, boxes: np.ndarray, rng: np.random.Generator, say: Say) -> dict[str, Any]:
    """Windows as a batch and one by one, the nearest, and brute force for some of the windows."""
    windows = small_boxes(rng, 10_000, 2 * (10 / len(boxes)) ** 0.5)
    (offsets, ids), batched = timed(lambda: tree.query(windows, output="csr"))
    singles, single = timed(lambda: [tree.query(window) for window in windows[:1000]])
    _, nearest = timed(lambda: [tree.nearest(window[:2], k=10) for window in windows[:1000]])
    say(f"   10,000 windows as one batch: {batched * 100:.1f} µs each, {len(ids) / 10_000:.0f} boxes found in each")
    say(f"   1,000 windows one by one: {single * 1000:.1f} µs each; the 10 nearest of a point: {nearest * 1000:.1f} µs")
    answers = [ids[offsets[i] : offsets[i + 1]] for i in range(1000)]
    ok = all(agrees(one, many) for one, many in zip(singles, answers, strict=True))
    ok = ok and all(agrees(answers[i], intersecting(boxes, windows[i])) for i in range(CHECKED_WINDOWS))
    return {
        "batched_window_seconds": batched / 10_000,
        "single_window_seconds": single / 1000,
        "nearest_seconds": nearest / 1000,
        "ok": ok,
    }


def small_boxes(rng: np.random.Generator, n: int, side: float) -> np.ndarray:
    """Boxes (n, 4) with their lower corners in the unit square and sides up to `side`."""
    low = rng.random((n, 2))
    return np.hstack([low, low + rng.random((n, 2)) * side])


# Part 3: kill -9.


def show_crash(out: Path, kills: int, say: Say) -> dict[str, Any]:
    """Kills a writing process again and again and looks for every acknowledged batch after each kill."""
    say(f"\n3. A process commits batches of {BATCH} boxes, reports each commit, and is killed (SIGKILL)")
    rounds: list[dict[str, Any]] = []
    first = 0
    for number in range(1, kills + 1):
        one = kill_once(out / "crash.xtree", first)
        rounds.append(one)
        first = one["found"]
        say(
            f"   kill {number}: {one['acknowledged']:,} batches acknowledged; reopened in "
            f"{milliseconds(one['reopen_seconds'])}: {one['found']:,} there, {one['lost']} lost, "
            f"contents {'exact' if one['exact'] else 'WRONG'}, check() clean"
        )
    ok = all(one["lost"] == 0 and one["exact"] for one in rounds)
    say(f"   {verdict(ok, 'nothing acknowledged was lost, and no half of a batch is there')}")
    return {"rounds": rounds, "ok": ok}


def kill_once(path: Path, first: int, acknowledgements: int = 100) -> dict[str, Any]:
    """Starts a writer at batch `first`, kills it some time after `acknowledgements` of them, reopens and compares.

    A batch whose commit returned but whose report was cut off by the kill may be there as well: one batch more than
    acknowledged is right, one less never is.
    """
    command = [sys.executable, "-m", "xtree.tools.demo_writer", str(path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            reports = [writer.stdout.readline() for _ in range(random.randint(acknowledgements, 2 * acknowledgements))]
        finally:  # after an interrupt too
            writer.kill()
        reports += writer.stdout.readlines()
    if not reports[-1]:
        raise RuntimeError(f"the writing process ended by itself with status {writer.returncode}")
    return inspect_crashed(path, int(reports[-1]) + 1)


def inspect_crashed(path: Path, acknowledged: int) -> dict[str, Any]:
    """Reopens what a killed writer left: how many batches are there, and are they exactly what was written."""
    started = perf_counter()
    with xtree.open(path) as tree:
        reopened = perf_counter() - started
        tree.check()
        ids, boxes = tree.items()
    found = len(ids) // BATCH
    expected = [batch(number) for number in range(found)]
    order = np.argsort(ids)
    exact = (
        len(ids) == found * BATCH
        and found in (acknowledged, acknowledged + 1)
        and np.array_equal(ids[order], np.arange(len(ids)))
        and np.array_equal(boxes[order], np.concatenate([b for _, b in expected]))
    )
    return {
        "acknowledged": acknowledged,
        "found": found,
        "lost": max(acknowledged - found, 0),
        "exact": exact,
        "reopen_seconds": reopened,
    }


def verdict(ok: bool, claim: str = "the answers agree with brute force") -> str:
    return f"checked: {claim}" if ok else f"FAILED: not true that {claim}"


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds it took."""
    started = perf_counter()
    return call(), perf_counter() - started


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
