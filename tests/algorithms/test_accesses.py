"""explain() counts the pages that a query reads, and no others.

Promises (Right answers):

- `explain` counts the pages that a query reads, a supernode as its blocks, and the entries it tests:
  all of it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from support import brute_force
from support.tree_walks import commit, grown

import xtree
from xtree.algorithms.bucket import describe
from xtree.algorithms.queries import explain
from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin


def totals(found: dict) -> None:
    """Asserts that the sums of a report are those of its levels."""
    for what in ("pages", "blocks", "entries"):
        assert found[what] == sum(level[what] for level in found["levels"])
    assert [level["level"] for level in found["levels"]] == list(range(len(found["levels"])))


def walked(store, state: TreeState, window: np.ndarray, predicate: str) -> list[tuple[int, int, int, int]]:
    """(level, pages, blocks, entries) of one query, found by walking the pages in Python."""
    found: dict[int, Counter[str]] = {level: Counter() for level in range(state.height)}
    dims = state.dims

    def visit(node: int, level: int, inside: bool) -> None:
        page = describe(store, node)
        found[level] += Counter(pages=1, blocks=page["blocks"], entries=0 if inside else page["count"])
        if level == 0:
            return
        boxes = page["boxes"]
        whole = np.full(len(boxes), inside)
        if not inside and predicate != "within":
            whole = (boxes[:, :dims] >= window[:dims]).all(axis=1) & (boxes[:, dims:] <= window[dims:]).all(axis=1)
        may = brute_force.matches(boxes, window, "within" if predicate == "within" else "intersects") | inside
        for i in np.flatnonzero(may):
            visit(int(page["refs"][i]), level - 1, bool(whole[i]))

    visit(state.root, state.height - 1, False)
    return [(level, n["pages"], n["blocks"], n["entries"]) for level, n in found.items()]


@pytest.mark.parametrize("predicate", ["intersects", "contains", "within"])
@pytest.mark.parametrize("dims", [1, 2, 16])
def test_windows_read_the_pages_that_a_walk_in_python_reads(dims, predicate, random):
    store = MemoryStore()
    write_set = begin(store)
    boxes = brute_force.random_boxes(random, 3000, dims, 0.3)
    state = grown(write_set, boxes)
    commit(write_set, state)
    number = ("intersects", "contains", "within").index(predicate)
    windows = np.vstack([boxes[:20] + 0.0, brute_force.random_boxes(random, 20, dims, 1.0)])
    for window in windows:
        found = explain.of_windows(store, state, window[None], number)
        totals(found)
        assert [tuple(level.values()) for level in found["levels"]] == walked(store, state, window, predicate)
        assert found["results"] == brute_force.matches(boxes, window, predicate).sum()
    together = explain.of_windows(store, state, windows, number)
    alone = [explain.of_windows(store, state, window[None], number) for window in windows]
    assert together["pages"] == sum(found["pages"] for found in alone)
    assert together["entries"] == sum(found["entries"] for found in alone)
    store.close()


def test_neighbours_are_searched_for_on_no_page_that_is_too_far(random):
    store = MemoryStore()
    write_set = begin(store)
    boxes = brute_force.random_boxes(random, 4000, 3, 0.02)
    state = grown(write_set, boxes)
    commit(write_set, state)
    for point in random.random((20, 3)):
        found = explain.of_nearest(store, state, point[None], 5, np.inf)
        totals(found)
        assert found["results"] == 5
        limit = np.sort(brute_force.distances(boxes, point))[4]
        near = Counter({state.height - 1: 1})

        def visit(node: int, level: int, near: Counter[int] = near, point=point, limit=limit) -> None:
            page = describe(store, node)
            for i in np.flatnonzero(brute_force.distances(page["boxes"], point) <= limit) if level else ():
                near[level - 1] += 1
                visit(int(page["refs"][i]), level - 1)

        visit(state.root, state.height - 1)
        # Pages nearer than the fifth neighbour are read; beyond that at most those of the first descent, one a level.
        for level in found["levels"]:
            assert near[level["level"]] <= level["pages"] <= near[level["level"]] + 1
    store.close()


def test_a_supernode_counts_as_its_blocks(random):
    tree = xtree.XTree(16, config=xtree.Config(page_bytes=8192))
    points = random.random((20_000, 16))
    tree.insert_many(np.arange(20_000), points)
    levels = tree.stats()["levels"]
    assert tree.stats()["supernodes"] > 0
    everything = tree.explain(np.r_[np.zeros(16) + points.min(), np.ones(16)])
    for found, level in zip(everything["levels"], levels):
        assert (found["pages"], found["blocks"]) == (level["nodes"], level["blocks"])
        assert level["blocks"] - level["nodes"] >= level["supernodes"]
    assert everything["results"] == 20_000


def test_a_tree_a_snapshot_and_a_transaction_explain_alike(make_tree, random):
    tree = make_tree(2)
    boxes = brute_force.random_boxes(random, 2000, 2)
    tree.insert_many(np.arange(2000), boxes)
    window, point = [0.2, 0.2, 0.4, 0.4], [0.5, 0.5]
    with tree.snapshot() as snapshot:
        before = snapshot.explain(window), snapshot.explain_nearest(point, k=3)
        assert before == (tree.explain(window), tree.explain_nearest(point, k=3))
        assert before[0]["queries"] == 1 and before[0]["results"] == tree.count(window)
        with tree.transaction() as tx:
            tx.delete_many(np.arange(1000), boxes[:1000])
            assert tx.explain(window)["results"] == tx.count(window) < before[0]["results"]
        assert before == (snapshot.explain(window), snapshot.explain_nearest(point, k=3))
    with pytest.raises(xtree.ClosedError):
        snapshot.explain(window)


def test_shapes_and_arguments_are_those_of_the_queries(make_tree):
    tree = make_tree(2)
    nothing = {"queries": 2, "results": 0, "pages": 0, "blocks": 0, "entries": 0, "levels": []}
    assert tree.explain([[0, 0], [1, 1]]) == tree.explain_nearest([[0, 0], [1, 1]], k=3) == nothing
    tree.insert(1, (0, 0))
    assert tree.explain(np.empty((0, 4)))["queries"] == tree.explain_nearest(np.empty((0, 2)))["queries"] == 0
    assert tree.explain_nearest((5, 5), max_distance=1.0)["results"] == 0
    assert tree.explain((0, 0), "within") == {
        "queries": 1, "results": 1, "pages": 1, "blocks": 1, "entries": 1,
        "levels": [{"level": 0, "pages": 1, "blocks": 1, "entries": 1}],
    }  # fmt: skip
    with pytest.raises(xtree.InvalidBoxError):
        tree.explain((1, 0, 0, 1))
    with pytest.raises(ValueError, match="predicate"):
        tree.explain((0, 0), "overlaps")
    with pytest.raises(ValueError, match="k must be"):
        tree.explain_nearest((0, 0), k=0)
    with pytest.raises(xtree.DimensionError):
        tree.explain_nearest((0, 0, 0))


def test_settings_make_an_r_star_tree(random):
    """With max_overlap=1.0 every split is accepted: there are no supernodes."""
    points = random.random((20_000, 16))
    trees = [xtree.XTree(16, config=xtree.Config(max_overlap=share, page_bytes=8192)) for share in (0.2, 1.0)]
    for tree in trees:
        tree.insert_many(np.arange(20_000), points)
    assert trees[0].stats()["supernodes"] > 0 == trees[1].stats()["supernodes"]
    costs = [tree.explain(points[:100]) for tree in trees]
    assert costs[0]["results"] == costs[1]["results"] == 100
    assert costs[0]["pages"] < costs[1]["pages"]
