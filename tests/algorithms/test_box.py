"""Geometry: decisions are exact, and measures are finite."""

from __future__ import annotations

import numpy as np
import pytest
from support.tree_data import ALL, MOST, TINIEST

from xtree.algorithms.kernels.box import contains, equal, measures, union


def box(*numbers: float) -> np.ndarray:
    return np.array(numbers, float)


def region_of(*boxes: np.ndarray) -> np.ndarray:
    dims = len(boxes[0]) // 2
    rows = np.array(boxes)
    return np.concatenate([rows[:, :dims].min(axis=0), rows[:, dims:].max(axis=0)])


def test_a_box_contains_itself_and_what_touches_its_sides():
    outer = box(0, 0, 2, 2)
    assert contains(outer, outer)
    assert contains(outer, box(0, 1, 0, 1))
    assert contains(outer, box(2, 2, 2, 2))
    assert not contains(outer, box(1, 1, 1, np.nextafter(2, 3)))
    assert not contains(outer, box(-TINIEST, 0, 1, 1))
    assert not contains(box(0, 0, 1, 1), outer)


def test_equal_is_by_value():
    assert equal(box(0.0, -0.0, 1, 1), box(-0.0, 0.0, 1, 1))
    assert not equal(box(0, 0, 1, 1), box(0, 0, 1, np.nextafter(1, 2)))
    assert not equal(box(0, 0, 1, 1), box(TINIEST, 0, 1, 1))


def test_a_union_takes_both_sides_of_an_axis():
    assert union(box(1, 1, 2, 2), box(0, 0, 3, 3)).tolist() == [0, 0, 3, 3]
    assert union(box(0, 5, 1, 6), box(2, 1, 3, 2)).tolist() == [0, 1, 3, 6]


@pytest.mark.parametrize("dims", [1, 2, 3, 8, 17, 64])
@pytest.mark.parametrize("shape", ALL)
def test_a_union_is_the_least_box_around_both(random, shape, dims):
    for a, b in zip(*np.split(ALL[shape](random, 40, dims), 2), strict=True):
        both = union(a, b)
        assert both.tolist() == region_of(a, b).tolist()
        assert contains(both, a)
        assert contains(both, b)


@pytest.mark.parametrize("dims", [1, 2, 3, 8])
def test_measures_are_shares_of_the_region(random, dims):
    for a, b in zip(*np.split(ALL["uniform"](random, 40, dims), 2), strict=True):
        a[dims:] += 0.5
        b[dims:] += 0.5
        region = region_of(a, b)
        extents = region[dims:] - region[:dims]
        shared = np.maximum(np.minimum(a[dims:], b[dims:]) - np.maximum(a[:dims], b[:dims]), 0.0)
        volume, margin, overlap = measures(region, a, b)
        assert volume == pytest.approx((a[dims:] - a[:dims]).prod() / extents.prod(), rel=1e-12)
        assert margin == pytest.approx((a[dims:] - a[:dims]).sum() / extents.max(), rel=1e-12)
        assert overlap == pytest.approx(shared.prod() / extents.prod(), rel=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3, 17, 64])
@pytest.mark.parametrize("shape", ALL)
def test_measures_are_never_infinite_nor_nan(random, shape, dims):
    boxes = ALL[shape](random, 40, dims)
    region = region_of(*boxes)
    for a, b in zip(*np.split(boxes, 2), strict=True):
        volume, margin, overlap = measures(region, a, b)
        assert 0.0 <= overlap <= volume * (1 + 1e-9)
        assert volume <= 1.0 + 1e-9
        assert 0.0 <= margin <= dims * (1 + 1e-9)
    assert measures(region, region, region)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [2.0**-1074, 2.0**-1000, 1.0, 2.0**1000, 2.0**1015])
def test_measures_do_not_depend_on_the_unit(random, scale):
    corners = np.sort(random.integers(-200, 200, (2, 2, 3)), axis=1).astype(float)
    a, b = (np.concatenate([lower, upper]) for lower, upper in corners)
    region = region_of(a, b)
    assert measures(region * scale, a * scale, b * scale) == measures(region, a, b)


def test_the_whole_range_of_doubles_is_a_region():
    whole = box(-MOST, -MOST, MOST, MOST)
    assert measures(whole, whole, box(0, 0, 0, 0)) == (1.0, 2.0, 0.0)
    assert measures(whole, box(-MOST, 0, 0, MOST), whole) == (0.25, 1.0, 0.25)


def test_an_axis_without_extent_is_left_out():
    region = box(0, 5, 4, 5)
    assert measures(region, box(1, 5, 2, 5), box(1.5, 5, 4, 5)) == (0.25, 0.25, 0.125)


def test_boxes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got boxes of 4 and 6 numbers"):
        contains(box(0, 0, 1, 1), box(0, 0, 0, 1, 1, 1))
    with pytest.raises(ValueError, match="got boxes of 3 and 3 numbers"):
        union(box(0, 0, 1), box(0, 0, 1))
    with pytest.raises(ValueError, match="got boxes of 130 and 130 numbers"):
        equal(np.zeros(130), np.zeros(130))
