"""The allocation wrapper: counted, and made to fail exactly once at a chosen call."""

import pytest

from xtree.persistence.memory import allocation_count, fail_allocation
from xtree.persistence.mvcc import Epochs
from xtree.persistence.object_table import ObjectTable


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


def test_every_allocation_is_counted():
    before = allocation_count()
    Epochs()
    assert allocation_count() == before + 1


def test_the_chosen_allocation_fails_and_the_next_one_does_not():
    fail_allocation(2)
    Epochs()
    with pytest.raises(MemoryError):
        Epochs()
    Epochs()


def test_a_planned_failure_can_be_cancelled():
    fail_allocation(1)
    fail_allocation(0)
    Epochs()


def test_a_negative_count_is_refused():
    with pytest.raises(OverflowError):
        fail_allocation(-1)


@pytest.mark.parametrize("nth", [1, 2])
def test_an_object_whose_allocation_failed_leaves_nothing_behind(nth):
    for _ in range(3):
        fail_allocation(nth)
        with pytest.raises(MemoryError):
            ObjectTable().reserve_node(1, 0, 0)
    fail_allocation(0)
    assert ObjectTable().reserve_node(1, 0, 0)
