"""The allocation wrapper: counted, and made to fail exactly once at a chosen call."""

import re
from pathlib import Path

import pytest

import xtree
from xtree.persistence.base.memory import allocation_count, fail_allocation, live_allocations, watch_allocations
from xtree.persistence.pages.mvcc import Epochs
from xtree.persistence.pages.object_table import ObjectTable


@pytest.fixture(autouse=True)
def watched():
    watch_allocations(True)
    yield
    watch_allocations(False)


def test_every_allocation_and_release_is_counted_while_somebody_watches():
    before, live = allocation_count(), live_allocations()
    epochs = Epochs()
    assert (allocation_count(), live_allocations()) == (before + 1, live + 1)
    del epochs
    assert live_allocations() == live
    watch_allocations(False)
    Epochs()
    assert allocation_count() == before + 1


def test_no_other_module_allocates_by_itself():
    for path in Path(xtree.__file__).parent.rglob("*.p[yx][xd]"):
        if path.name not in ("memory.pyx", "memory.pxd"):
            assert not re.search(r"\b(malloc|calloc|realloc|aligned_alloc|PyMem_\w+)\(", path.read_text()), path


def test_the_chosen_allocation_fails_and_the_next_one_does_not():
    fail_allocation(2)
    Epochs()
    with pytest.raises(MemoryError):
        Epochs()
    Epochs()


def test_a_planned_failure_can_be_cancelled():
    fail_allocation(3)
    assert fail_allocation(0) == 3
    Epochs()


def test_a_failure_that_has_happened_waits_no_more():
    fail_allocation(1)
    with pytest.raises(MemoryError):
        Epochs()
    assert fail_allocation(0) == 0


def test_a_negative_count_is_refused():
    with pytest.raises(OverflowError):
        fail_allocation(-1)


@pytest.mark.parametrize("nth", [1, 2])
def test_an_object_whose_allocation_failed_leaves_nothing_behind(nth):
    live = live_allocations()
    for _ in range(3):
        fail_allocation(nth)
        with pytest.raises(MemoryError):
            ObjectTable().reserve_node(1, 0, 0)
        assert live_allocations() == live
    fail_allocation(0)
    assert ObjectTable().reserve_node(1, 0, 0)
