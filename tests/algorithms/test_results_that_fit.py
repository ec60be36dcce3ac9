"""Results that don't fit raise MemoryError before they are computed, or as soon as they outgrow the memory there is.

Promises (Right answers):

- results that can't fit raise MemoryError before they are worked out, or when they outgrow what there is:
  all of it.
"""

from __future__ import annotations

import numpy as np
import pytest

import xtree
from xtree.persistence.base import breath
from xtree.persistence.files import platform_fs

N = 20_000


@pytest.fixture
def tree(random):
    tree = xtree.XTree.from_boxes(random.random((N, 2)), dims=2)
    yield tree
    tree.check()
    tree.close()


@pytest.fixture
def little(monkeypatch):
    """The system has 100 MB left."""
    monkeypatch.setattr(platform_fs, "available_memory", lambda: 100_000_000)


@pytest.fixture
def ever_less(monkeypatch):
    """The system has 100 MB left, then 80, and so on."""
    left = iter(range(100_000_000, 0, -20_000_000))
    monkeypatch.setattr(platform_fs, "available_memory", lambda: next(left, 0))


@pytest.fixture
def breaths():
    """Counts the breaths that are taken."""
    breath.watch_breaths(True)
    yield breath.breath_count
    breath.watch_breaths(False)


EVERYTHING = (-1.0, -1.0, 2.0, 2.0)


@pytest.mark.parametrize("threads", [1, 3])
def test_neighbours_that_cannot_fit_are_refused_before_the_first_is_looked_for(tree, little, breaths, threads):
    points = np.zeros((1000, 2))
    for call in (lambda: tree.nearest(points, N, threads=threads), lambda: tree.explain_nearest(points, 2**62)):
        with pytest.raises(MemoryError, match="640000000 bytes"):
            call()
    assert breaths() == 0
    assert tree.nearest(points[:100], 1000).shape == (2, 100_000)
    assert tree.nearest(points, N, max_distance=0.0).size == 0


def test_neighbours_beyond_any_memory_are_refused_on_this_machine_too(tree):
    if platform_fs.available_memory() is None:
        pytest.skip("the system doesn't say what it has")
    with pytest.raises(MemoryError, match="bytes"):
        tree.nearest(np.zeros((20_000_000, 2)), N)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_ends_when_its_results_outgrow_what_there_is(tree, ever_less, threads):
    with pytest.raises(MemoryError, match="of more than"):
        tree.query(np.tile(EVERYTHING, (3000, 1)), threads=threads)
    assert tree.query(np.tile(EVERYTHING, (20, 1)), output="csr")[1].shape == (20 * N,)


def test_a_join_ends_when_its_results_outgrow_what_there_is(tree, ever_less):
    other = xtree.XTree.from_boxes(np.tile(EVERYTHING, (3000, 1)))
    with pytest.raises(MemoryError, match="of more than"):
        tree.join(other)


def test_results_whose_number_is_known_are_refused_before_they_are_put_in_order(little):
    tree = xtree.XTree.from_boxes(np.zeros((900, 4)))
    with pytest.raises(MemoryError, match="144000000 bytes"):  # 72000000 of ids fit
        tree.query(np.zeros((10_000, 4)))


def test_the_system_says_what_it_has_left(monkeypatch):
    free = platform_fs.available_memory()
    assert free is None or free > 1 << 20
    if free is not None:
        monkeypatch.setattr("builtins.open", refuse)
        assert platform_fs.available_memory() is None or platform_fs.available_memory() >= free // 2


def refuse(*arguments, **more):
    raise FileNotFoundError
