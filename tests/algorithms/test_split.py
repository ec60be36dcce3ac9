"""Splits, held against the definitions: R* distributions by brute force, and the X-tree's rules on overlap.

Promises (Right answers):

- splits are those of the papers:
  all of it.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest
from support.tree_data import ALL, all_equal, uniform

from xtree.algorithms.updates.split import plan_split


def bounds(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dims = boxes.shape[1] // 2
    return boxes[:, :dims].min(axis=0), boxes[:, dims:].max(axis=0)


def margin(boxes: np.ndarray) -> float:
    least, most = bounds(boxes)
    return float((most - least).sum())


def volume(boxes: np.ndarray) -> float:
    least, most = bounds(boxes)
    return float((most - least).prod())


def shared_volume(first: np.ndarray, second: np.ndarray) -> float:
    (least, most), (other_least, other_most) = bounds(first), bounds(second)
    return float(np.maximum(np.minimum(most, other_most) - np.maximum(least, other_least), 0.0).prod())


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    shared = shared_volume(first, second)
    covered = volume(first) + volume(second) - shared
    return shared / covered if covered else 0.0


def by_definition(boxes: np.ndarray, min_fill: float) -> list[tuple[int, set[frozenset[int]]]]:
    """The R*-tree's splits of a page, as (axis, groups): several if their margins differ only by rounding."""
    n, width = boxes.shape
    dims = width // 2
    least = min(ceil(min_fill * n), n // 2)
    plans = []
    for axis in range(dims):
        margins = 0.0
        cuts = []
        for column, other in ((axis, dims + axis), (dims + axis, axis)):
            order = np.lexsort((boxes[:, other], boxes[:, column]))
            for k in range(least, n - least + 1):
                first, second = boxes[order[:k]], boxes[order[k:]]
                margins += margin(first) + margin(second)
                cost = (shared_volume(first, second), volume(first) + volume(second), abs(2 * k - n))
                cuts.append((cost, {frozenset(order[:k].tolist()), frozenset(order[k:].tolist())}))
        plans.append((margins, axis, min(cuts, key=lambda cut: cut[0])[1]))
    least_margins = min(margins for margins, _, _ in plans)
    return [(axis, groups) for margins, axis, groups in plans if margins <= least_margins * (1 + 1e-9)]


def groups_of(plan: dict[str, Any]) -> set[frozenset[int]]:
    return {frozenset(group.tolist()) for group in plan["groups"]}


@pytest.mark.parametrize("dims", range(1, 9))
def test_the_topological_split_is_the_r_star_trees(random, dims):
    for n in (2, 3, 5, 9, 14, 25, 40):
        boxes = uniform(random, n, dims)
        plan = plan_split(boxes)
        assert (plan["axis"], groups_of(plan)) in by_definition(boxes, 0.4)
        assert not plan["by_position"]


def test_the_smaller_side_keeps_to_the_fill_asked_for(random):
    for min_fill in (0.1, 0.25, 0.4, 0.5):
        for n in range(2, 60, 7):
            plan = plan_split(uniform(random, n, 2), min_fill=min_fill)
            assert min(len(group) for group in plan["groups"]) >= min(ceil(min_fill * n), n // 2)


@pytest.mark.parametrize("shape", ALL)
@pytest.mark.parametrize("dims", [1, 2, 3, 17, 64])
def test_every_entry_is_in_one_group(random, shape, dims):
    boxes = ALL[shape](random, 41, dims)
    plan = plan_split(boxes)
    first, second = plan["groups"]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(41))
    assert min(len(first), len(second)) >= 17
    assert 0.0 <= plan["overlap"] <= 1.0


@pytest.mark.parametrize("dims", [1, 2, 8])
def test_the_overlap_reported_is_that_of_the_groups(random, dims):
    for _ in range(20):
        boxes = uniform(random, 30, dims)
        boxes[:, dims:] += random.random()
        plan = plan_split(boxes)
        first, second = plan["groups"]
        assert plan["overlap"] == pytest.approx(overlap(boxes[first], boxes[second]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("factor", [2.0**-1000, 2.0**-1074, 2.0**1000, 2.0**1017])
def test_a_split_is_the_same_at_any_scale(random, factor):
    boxes = np.round(uniform(random, 33, 3) * 64.0) + 1.0
    boxes[:, 3:] += 1.0
    assert groups_of(plan_split(boxes * factor)) == groups_of(plan_split(boxes))


@pytest.mark.parametrize("dims", [1, 2, 16])
def test_equal_boxes_are_split_in_half_by_position(random, dims):
    for n in (2, 3, 97):
        plan = plan_split(all_equal(random, n, dims))
        assert plan["by_position"]
        assert [group.tolist() for group in plan["groups"]] == [list(range(n // 2)), list(range(n // 2, n))]


@pytest.mark.parametrize("dims", [1, 2, 16])
def test_pages_of_equal_boxes_never_grow_into_supernodes(random, dims):
    for n in (2, 3, 97):
        plan = plan_split(all_equal(random, n, dims), may_stay=True)
        assert plan["by_position"]
        assert sorted(np.concatenate(plan["groups"])) == list(range(n))


def test_flat_boxes_do_not_overlap_as_a_nan(random):
    boxes = uniform(random, 30, 3)
    boxes[:, 5] = boxes[:, 2] = 0.5
    plan = plan_split(boxes, may_stay=True, max_overlap=1.0)
    assert plan["overlap"] == plan["overlap"]
    flat = np.ascontiguousarray(boxes[:, [0, 1, 3, 4]])
    assert groups_of(plan) == groups_of(plan_split(flat))


def long_on_one_axis(random: np.random.Generator, n: int) -> np.ndarray:
    """Boxes whose margins ask for a split along axis 0, where they overlap; along axis 1 they don't."""
    lower = np.column_stack([random.random(n) * 1000.0, np.arange(n) * 1e-3])
    return np.ascontiguousarray(np.hstack([lower, lower + np.array([2000.0, 0.5e-3])])[random.permutation(n)])


def test_too_much_overlap_without_history_makes_a_supernode(random):
    boxes = long_on_one_axis(random, 40)
    assert plan_split(boxes)["axis"] == 0
    assert plan_split(boxes)["overlap"] > 0.2
    assert plan_split(boxes, may_stay=True) is None


@pytest.mark.parametrize(("equal", "splits"), [(39, False), (40, True), (41, True), (70, True)])
def test_where_half_of_the_boxes_are_equal_they_get_a_page_of_their_own(random, equal, splits):
    boxes = long_on_one_axis(random, 80)
    boxes[random.permutation(80)[:equal]] = (1000.0, -1.0, 2500.0, 1.0)
    plan = plan_split(boxes, may_stay=True, max_overlap=0.0)
    assert (plan is not None) == splits
    if splits:
        first, second = plan["groups"]
        assert len(second) == 40 and (boxes[second] == (1000.0, -1.0, 2500.0, 1.0)).all()
        assert sorted([*first, *second]) == list(range(80)) and plan["by_position"]
        assert plan["overlap"] == pytest.approx(overlap(boxes[first], boxes[second]), rel=1e-9)



def test_the_history_finds_the_axis_without_overlap(random):
    boxes = long_on_one_axis(random, 40)
    plan = plan_split(boxes, [0b10] * 40, may_stay=True)
    assert (plan["axis"], plan["overlap"]) == (1, 0.0)
    assert sorted(len(group) for group in plan["groups"]) == [20, 20]
    assert groups_of(plan) == {frozenset(half.tolist()) for half in np.split(np.argsort(boxes[:, 1]), 2)}


def test_an_axis_counts_only_if_every_entry_was_split_on_it(random):
    boxes = long_on_one_axis(random, 40)
    assert plan_split(boxes, [0b11] * 39 + [0b01], may_stay=True) is None


def test_an_unbalanced_split_by_history_makes_a_supernode(random):
    boxes = long_on_one_axis(random, 40)
    boxes[boxes[:, 1] > 0.0045, 1] = 0.005
    boxes[boxes[:, 1] == 0.005, 3] = 0.006
    assert plan_split(boxes, [0b10] * 40, may_stay=True, max_overlap=0.01) is None
    assert plan_split(boxes, [0b10] * 40, may_stay=True, max_overlap=0.01, min_fanout=0.1)["axis"] == 1


def test_a_balanced_split_by_history_is_found_beside_an_unbalanced_one_of_less_overlap(random):
    """A split that cuts off a single entry has almost no overlap, since that entry has almost no volume."""
    boxes = long_on_one_axis(random, 40)
    boxes[:, 3] += 1e-3
    plan = plan_split(boxes, [0b10] * 40, may_stay=True)
    assert plan["axis"] == 1
    assert min(len(group) for group in plan["groups"]) >= 14
    assert 0.0 < plan["overlap"] < 0.02


def test_the_largest_supernode_is_split_whatever_its_overlap(random):
    boxes = long_on_one_axis(random, 40)
    assert groups_of(plan_split(boxes, may_stay=False)) == by_definition(boxes, 0.4)[0][1]


def test_overlap_up_to_the_limit_is_accepted(random):
    boxes = long_on_one_axis(random, 40)
    limit = plan_split(boxes)["overlap"]
    assert plan_split(boxes, may_stay=True, max_overlap=limit) is not None
    assert plan_split(boxes, may_stay=True, max_overlap=np.nextafter(limit, 0.0)) is None


def test_a_page_of_one_entry_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2"):
        plan_split(np.zeros((1, 2)))
