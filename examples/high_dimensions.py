"""The X-tree paper's experiments: python examples/high_dimensions.py [megabytes] [seed]

Berchtold, Keim and Kriegel (VLDB 1996) compare the X-tree with the R*-tree by the blocks that queries read, a supernode
of s blocks counting as s. Here both are the same code: with `max_overlap=1.0` every split is accepted, there are no
supernodes, and the tree is an R*-tree. The tables are Markdown; docs/results/high-dimensions.md has those of a long
run, and what they mean. With matplotlib, high-dimensions.svg is drawn; with scikit-learn (and pillow) there is real
data too.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import xtree

TREES = {"X-tree": 0.2, "X-tree, 0.4": 0.4, "R*-tree": 1.0}  # name -> max_overlap
UNIFORM_DIMS = (2, 4, 8, 12, 16, 32)
QUERIES = 100
SINGLE_INSERTS = 100
Row = list[Any]


@dataclass
class Measured:
    """One tree over one data set; pages and blocks a query or insert."""

    points: float
    points_pages: float
    nearest: float
    nearest_pages: float
    written: float
    cpu_us: float
    stats: dict[str, Any]

    @property
    def scan(self) -> float:
        """Blocks of the records alone, packed."""
        leaves = self.stats["levels"][0]
        return leaves["nodes"] * leaves["fill"]


def written_bytes(tree: xtree.XTree) -> int:
    """The bytes of all pages that are stored; while a snapshot is open, none is given back."""
    classes = tree.runtime.stats()["allocator"]
    return sum(classes[size]["used"] * (4096 << size) for size in range(len(classes)))


def block_bytes(dims: int) -> int:
    """The page size: as small as the paper's blocks, but with room for at least 24 entries of a directory page."""
    size = 4096
    while (size - 64) // (16 * dims + 16) // 8 * 8 < 24:
        size *= 2
    return size


def measure(data: np.ndarray, questions: np.ndarray, max_overlap: float) -> Measured:
    """Inserts points one after the other, asks for some of them, and for the 10 nearest of the questions."""
    n, dims = data.shape
    ids, first = np.arange(n), n - SINGLE_INSERTS
    config = xtree.Config(durability="eventual", max_overlap=max_overlap, page_bytes=block_bytes(dims))
    with tempfile.TemporaryDirectory() as folder, xtree.open(f"{folder}/index", dims=dims, config=config) as tree:
        started = time.process_time()
        tree.insert_many(ids[:first], data[:first])
        cpu = time.process_time() - started
        with tree.snapshot():
            before = written_bytes(tree)
            for i in range(first, n):
                tree.insert(i, data[i])  # a commit each: copies a path of pages, and what is split
            written = (written_bytes(tree) - before) / SINGLE_INSERTS / block_bytes(dims)
        points = tree.explain(data[:: max(n // QUERIES, 1)])
        assert points["results"] >= points["queries"]
        nearest = tree.explain_nearest(questions, k=10)
        costs = [found[what] / found["queries"] for found in (points, nearest) for what in ("blocks", "pages")]
        return Measured(*costs, written, cpu / first * 1e6, tree.stats())


def uniform(megabytes: float, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points by name, as many as fill these megabytes as records (boxes and ids), and points to ask about."""
    return {
        f"uniform, {dims}-D": (rng.random((int(megabytes * 1e6 / (16 * dims + 8)), dims)), rng.random((QUERIES, dims)))
        for dims in UNIFORM_DIMS
    }


def components(data: np.ndarray, count: int) -> np.ndarray:
    """The first principal components of the rows."""
    centred = data - data.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :count]


def real(megabytes: float, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Handwritten digits, and 8 × 8 pixels around every place of two photographs; some of them are asked about."""
    try:
        from sklearn.datasets import load_digits, load_sample_images

        images = load_sample_images().images
    except ImportError as error:
        print(f"without real data: {error}\n")
        return {}
    grey = [image.mean(axis=2) for image in images]
    patches = np.concatenate([np.lib.stride_tricks.sliding_window_view(g, (8, 8)).reshape(-1, 64) for g in grey])
    found = {}
    for name, pixels in (("digits", load_digits().data), ("patches", patches)):
        some = rng.permutation(pixels)[: max(int(megabytes * 1e6 / 136), 1500)]  # of 8 dimensions
        for dims in (8, 16, 64):
            rows = some if dims == 64 else components(some, dims)
            rows = rows[: max(int(megabytes * 1e6 / (16 * dims + 8)), 1500)]
            found[f"{name}, {dims}-D"] = rows[QUERIES:], rows[:QUERIES]
    return found


def table(head: Row, rows: list[Row]) -> None:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(cell, row)) + " |")
    print(flush=True)


def show(found: dict[str, dict[str, Measured]]) -> None:
    """The tables of what was measured, by data set and tree."""
    for title, of in (("Point queries: blocks a query", "points"), ("10 nearest: blocks a query", "nearest")):
        print(f"## {title}\n")
        rows = []
        for data, trees in found.items():
            blocks = [getattr(tree, of) for tree in trees.values()]
            some = trees["X-tree"]
            ratio = f"{blocks[-1] / blocks[0]:.2f}×"
            rows.append([data, some.stats["records"], *blocks, ratio, getattr(some, of + "_pages"), some.scan])
        table(["data", "records", *TREES, "R*-tree / X-tree", "pages of the X-tree", "scan"], rows)

    print("## Insertion: CPU time, pages split, blocks written for one record in a commit of its own\n")
    rows = [
        [data, *(cell for tree in trees.values() for cell in (
            tree.cpu_us, tree.stats["nodes"] - tree.stats["height"], tree.written))]
        for data, trees in found.items()
    ]  # fmt: skip
    table(["data", *(f"{name}: {what}" for name in TREES for what in ("µs", "splits", "blocks"))], rows)

    print("## Levels of the X-tree\n")
    rows = []
    for data, trees in found.items():
        for level in trees["X-tree"].stats["levels"]:
            supernodes = level["supernodes"]
            if level["nodes"] == 1 and not supernodes:
                continue
            m = (level["blocks"] - level["nodes"] + supernodes) / supernodes if supernodes else 1.0
            of_supernodes = [m, level["supernode_fill"], (2 * m - 2) / (2 * m - 1)] if supernodes else ["", "", ""]
            rows.append([data, level["level"], level["nodes"], level["page_fill"] or "", supernodes, *of_supernodes])
    table(["data", "level", "pages", "fill of normal pages", "supernodes", "blocks of each", "their fill",
           "(2m-2)/(2m-1)"], rows)  # fmt: skip


def draw(found: dict[str, dict[str, Measured]]) -> None:
    """Blocks a query over the number of dimensions, of uniform points."""
    try:
        import matplotlib
    except ImportError as error:
        print(f"without a plot: {error}")
        return
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "xtree"}
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    trees = [found[f"uniform, {dims}-D"] for dims in UNIFORM_DIMS]
    for panel, of, title in zip(panels, ("points", "nearest"), ("point queries", "10 nearest")):
        for name in TREES:
            panel.plot(UNIFORM_DIMS, [getattr(of_dims[name], of) for of_dims in trees], marker="o", label=name)
        panel.plot(UNIFORM_DIMS, [of_dims["X-tree"].scan for of_dims in trees], "k--", label="scan")
        panel.set(title=title, xlabel="dimensions", ylabel="blocks a query", yscale="log", xticks=UNIFORM_DIMS)
    panels[0].legend()
    figure.savefig("high-dimensions.svg", metadata={"Date": None})
    print("drew high-dimensions.svg")


def main(megabytes: float = 0.1, seed: float = 7) -> None:
    rng = np.random.default_rng(int(seed))
    found = {}
    for name, (data, questions) in {**uniform(megabytes, rng), **real(megabytes, rng)}.items():
        found[name] = {tree: measure(data, questions, max_overlap) for tree, max_overlap in TREES.items()}
        print(f"measured {name}", file=sys.stderr, flush=True)
    show(found)
    draw(found)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:3]))
