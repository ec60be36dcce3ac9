"""Every form of every kernel against numpy, entry by entry, to the last bit, on random columns and chosen values.

The values after the last entry would pass the test if they were read. A failure shows its seed.

Promises (Right answers):

- all processors get the same answers: every form of every kernel agrees with numpy to the last bit, ten million
  entries in torture, and whole trees answer alike:
  all of it, test_window_kernels.py::test_all_forms_agree,
  test_window_kernels.py::test_the_tests_of_answers_pass_with_each_form.
"""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from xtree.algorithms.kernels import forms
from xtree.tools.probes import kernel_forms

SLACK = 8
EDGES = np.array([-np.inf, -1.7e308, -1.0, np.nextafter(-1.0, 0.0), -5e-324, -0.0, 0.0, 5e-324, 2.2e-308, 1e-160,
                  np.nextafter(1.0, 0.0), 1.0, np.nextafter(1.0, 2.0), 1e155, 1.7e308, np.inf, np.nan])  # fmt: skip
FINITE = EDGES[np.isfinite(EDGES)]


def columns(rng: np.random.Generator, dims: int, stride: int, few: bool) -> np.ndarray:
    """Lower or upper bounds: from a few values that differ in single bits, or any."""
    return rng.choice(EDGES, (dims, stride)) if few else rng.normal(size=(dims, stride))


def passes(first: np.ndarray, second: np.ndarray, most: np.ndarray, least: np.ndarray) -> np.ndarray:
    return ((first <= most[:, None]) & (second >= least[:, None])).all(axis=0)


def try_page(rng: np.random.Generator, dims: int) -> int:
    """Compares all forms on one page; returns how many entries it had."""
    few = bool(rng.integers(2))
    stride = 8 * int(rng.integers(1, 40))
    count = int(rng.integers(0, stride + 1))
    lead = int(rng.integers(dims))
    first, second = columns(rng, dims, stride, few), columns(rng, dims, stride, few)
    if rng.random() < 0.5:
        first, second = np.minimum(first, second), np.maximum(first, second)
    most, least = columns(rng, dims, 1, few)[:, 0], columns(rng, dims, 1, few)[:, 0]
    if rng.random() < 0.8:  # so that something is found in many dimensions too
        wide = rng.random(dims) < 0.8
        most, least = np.where(wide, np.inf, most), np.where(wide, -np.inf, least)
    first[:, count:], second[:, count:] = -np.inf, np.inf
    refs = rng.integers(0, 2**64, stride, np.uint64)
    expected = passes(first, second, most, least)[:count]
    inside = expected & passes(second, first, most, least)[:count]
    leading = np.flatnonzero((first[lead] <= most[lead]) & (second[lead] >= least[lead])[:stride])
    leading = leading[leading < count]
    extent = (leading[0] & ~7, leading[-1] + 1) if len(leading) else (0, 0)
    for form in forms.available():
        hits, behind = kernel_forms.select(form, first, second, most, least, lead, count, refs)
        np.testing.assert_array_equal(hits, refs[:count][expected])
        assert not behind[SLACK:].any()
        crossing, whole = kernel_forms.divide(form, first, second, most, least, lead, count, refs)
        np.testing.assert_array_equal(crossing, refs[:count][expected & ~inside])
        np.testing.assert_array_equal(whole, refs[:count][inside])
        assert kernel_forms.span(form, first, second, most, least, lead, count) == extent
    return count


def try_distances(rng: np.random.Generator, dims: int) -> int:
    few = bool(rng.integers(2))
    stride = 8 * int(rng.integers(1, 40))
    count = int(rng.integers(0, stride + 1))
    if few:
        a, b, point = rng.choice(FINITE, (dims, stride)), rng.choice(FINITE, (dims, stride)), rng.choice(FINITE, dims)
    else:
        a, b, point = rng.normal(size=(dims, stride)), rng.normal(size=(dims, stride)), rng.normal(size=dims)
    lower, upper = np.minimum(a, b), np.maximum(a, b)
    with np.errstate(over="ignore", under="ignore"):
        gaps = np.maximum(np.maximum(lower - point[:, None], point[:, None] - upper), 0.0)
        total = gaps[0] * gaps[0]
        for gap in gaps[1:]:
            total = total + gap * gap
        expected = np.sqrt(total)[:count]
    for form in forms.available():
        found = kernel_forms.distances(form, lower, upper, point, count)
        np.testing.assert_array_equal(found.view(np.uint64), expected.view(np.uint64))
    return count


def try_entries(n: int, tally) -> None:
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for tried, what in ((try_page, "entries tested by every form"), (try_distances, "distances by every form")):
        done = 0
        while done < n:
            done += tried(rng, int(rng.choice((1, 2, 2, 3, 4, 5, 8, 16, 64))))
        tally(what, done)


def test_all_forms_agree_with_numpy(tally):
    try_entries(200_000, tally)


@pytest.mark.torture
@pytest.mark.timeout(3000)
def test_all_forms_agree_with_numpy_on_ten_million_entries(tally):
    try_entries(10_000_000, tally)


def test_what_does_not_fit_together_is_refused():
    page = np.zeros((2, 8)), np.zeros((2, 8)), np.zeros(2), np.zeros(2), 0, 8
    refs = np.zeros(8, np.uint64)
    with pytest.raises(ValueError, match="this processor runs"):
        kernel_forms.select("sse9", *page, refs)
    with pytest.raises(ValueError, match="multiple of 8"):
        kernel_forms.span("portable", np.zeros((2, 9)), np.zeros((2, 9)), *page[2:])
    with pytest.raises(ValueError, match="fit together"):
        kernel_forms.distances("portable", *page[:2], np.zeros(3), 8)
    with pytest.raises(ValueError, match="fit together"):
        kernel_forms.divide("portable", *page[:5], 9, refs)
