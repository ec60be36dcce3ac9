"""Trees and queries whose page accesses are the same on every machine; what they should cost is in page_accesses.json.

After a change that is meant to change the accesses, `python tests/support/page_accesses.py` writes that file anew;
look at its diff before you commit it. The tests are in test_page_accesses.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import xtree

EXPECTED = Path(__file__).with_suffix(".json")
COSTS = ("pages", "blocks", "entries")

Figures = dict[str, dict[str, int]]


class Numbers:
    """Uniform random numbers from the raw bits of PCG64, which are the same in every release of numpy."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.PCG64(seed)

    def __call__(self, n: int, dims: int) -> np.ndarray:
        return (self.bits.random_raw(n * dims).reshape(n, dims) >> np.uint64(11)) * 2.0**-53


def boxes_at(lower: np.ndarray, extents: np.ndarray | float) -> np.ndarray:
    return np.hstack([lower, lower + extents])


def small_boxes(numbers: Numbers, n: int, dims: int) -> np.ndarray:
    return boxes_at(numbers(n, dims), numbers(n, dims) * 0.5 / n ** (1 / dims))


def clustered_boxes(numbers: Numbers, n: int, dims: int) -> np.ndarray:
    """Boxes around 40 centres, denser towards each."""
    centres = numbers(40, dims)[np.arange(n) % 40]
    offsets = (numbers(n, dims) + numbers(n, dims) - 1.0) * numbers(n, 1) * 0.05
    return boxes_at(centres + offsets, numbers(n, dims) * 0.001)


def inserted(boxes: np.ndarray) -> xtree.XTree:
    dims = boxes.shape[1] // 2
    page_bytes = {16: 8192, 32: 16384}.get(dims)  # half of the default, so that there are supernodes
    tree = xtree.XTree(dims, config=xtree.Config(page_bytes=page_bytes))
    tree.insert_many(np.arange(len(boxes)), boxes)
    return tree


def thinned(boxes: np.ndarray) -> xtree.XTree:
    """The tree that is left when three of four records were deleted, in the order of their insertion."""
    tree = inserted(boxes)
    gone = np.flatnonzero(np.arange(len(boxes)) % 4)
    tree.delete_many(gone, boxes[gone])
    return tree


def points(numbers: Numbers, n: int, dims: int) -> np.ndarray:
    return boxes_at(numbers(n, dims), 0.0)


def in_order(boxes: np.ndarray) -> np.ndarray:
    return boxes[np.argsort(boxes[:, 0], kind="stable")]


WORKLOADS: dict[str, Callable[[Numbers], tuple[np.ndarray, xtree.XTree]]] = {}


def workload(name: str, data: Callable[[Numbers, int, int], np.ndarray], n: int, dims: int,
             make: Callable[[np.ndarray], xtree.XTree], sort: bool = False) -> None:
    def build(numbers: Numbers) -> tuple[np.ndarray, xtree.XTree]:
        boxes = in_order(data(numbers, n, dims)) if sort else data(numbers, n, dims)
        return boxes, make(boxes)

    WORKLOADS[name] = build


workload("uniform boxes, inserted, 2-D", small_boxes, 20_000, 2, inserted)
workload("clustered boxes, inserted, 2-D", clustered_boxes, 20_000, 2, inserted)
workload("uniform boxes, inserted in order, 2-D", small_boxes, 20_000, 2, inserted, sort=True)
workload("uniform boxes, three of four deleted, 2-D", small_boxes, 20_000, 2, thinned)
workload("uniform boxes, bulk-loaded, 2-D", small_boxes, 50_000, 2, xtree.XTree.from_boxes)
workload("clustered boxes, bulk-loaded, 3-D", clustered_boxes, 50_000, 3, xtree.XTree.from_boxes)
workload("uniform points, inserted, 8-D", points, 20_000, 8, inserted)
workload("uniform points, bulk-loaded, 8-D", points, 20_000, 8, xtree.XTree.from_boxes)
workload("uniform points, inserted, 16-D", points, 20_000, 16, inserted)
workload("clustered boxes, inserted, 16-D", clustered_boxes, 20_000, 16, inserted)
workload("uniform points, three of four deleted, 16-D", points, 20_000, 16, thinned)
workload("uniform points, inserted, 32-D", points, 10_000, 32, inserted)


def measure(name: str) -> Figures:
    """The size of the tree of a workload, and the costs of queries at some of its records."""
    numbers = Numbers(7)
    boxes, tree = WORKLOADS[name](numbers)
    dims = tree.dims
    low, high = boxes.min(axis=0)[:dims], boxes.max(axis=0)[dims:]
    some = boxes[:: len(boxes) // 200, :dims]
    stats = tree.stats()
    figures = {"tree": {"pages": stats["nodes"], "blocks": sum(level["blocks"] for level in stats["levels"])}}
    costs = {"points": tree.explain(some), "10 nearest of records": tree.explain_nearest(some[:100], k=10)}
    costs["10 nearest of anything"] = tree.explain_nearest(low + numbers(100, dims) * (high - low), k=10)
    for share in (0.0005, 0.02):
        side = (high - low) * share ** (1 / dims) / 2
        costs[f"windows of {share:.2%}"] = tree.explain(np.hstack([some - side, some + side])[::2])
    for query, cost in costs.items():
        figures[query] = {"results": cost["results"], **{what: cost[what] for what in COSTS}}
    return figures


def expected() -> dict[str, Figures]:
    return dict(json.loads(EXPECTED.read_text(encoding="utf-8")))


def main() -> None:
    text = json.dumps({name: measure(name) for name in WORKLOADS}, indent=1)
    EXPECTED.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {EXPECTED.name}: {len(WORKLOADS)} workloads")


if __name__ == "__main__":
    main()
