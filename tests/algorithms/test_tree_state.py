"""TreeState: parameters, the bytes in the catalog, and which bytes are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from support.tree_data import uniform

from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates.insertion import insert
from xtree.errors import CorruptionError, FormatVersionError
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

HEADER = struct.Struct("<HHHBBQ4d")


@pytest.fixture
def state(random):
    store = MemoryStore()
    ws = begin(store)
    made = TreeState.create(3, max_overlap=0.25, min_fanout=0.3, min_fill=0.35, leaf_fill=0.9)
    insert(ws, made, np.arange(500), uniform(random, 500, 3))
    yield made
    ws.abort()
    store.close()


def facts(state: TreeState) -> tuple:
    bounds = None if state.bounds is None else state.bounds.tolist()
    return state.dims, state.height, state.count, state.root, bounds, state.parameters


def test_a_state_survives_encoding(state):
    assert facts(TreeState.decode(state.encode(), state.root)) == facts(state)
    empty = TreeState.create(5, page_bytes=16384)
    assert facts(TreeState.decode(empty.encode(), 0)) == facts(empty)


def test_a_copy_is_independent(state):
    copy = state.copy()
    assert facts(copy) == facts(state)
    state.bounds[:] = 7.0
    assert facts(copy) == facts(state)


def test_the_bytes_are_those_of_the_layout(state):
    data = state.encode()
    assert HEADER.unpack_from(data) == (2, 3, state.height, 0, 0, 500, 0.25, 0.3, 0.35, 0.9)
    assert data[HEADER.size :] == state.bounds.tobytes()


def test_the_parameters_make_an_equal_empty_tree(state):
    assert TreeState.create(3, **state.parameters).parameters == state.parameters


def test_an_empty_tree_has_no_bounds():
    state = TreeState.create(2)
    assert facts(state)[:5] == (2, 0, 0, 0, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": 0}, {"dims": 65}, {"max_overlap": -0.1}, {"max_overlap": 1.1}, {"max_overlap": float("nan")},
        {"min_fanout": 0.0}, {"min_fanout": 0.51}, {"min_fill": 0.0}, {"min_fill": 0.6}, {"min_fill": float("nan")},
        {"leaf_fill": 0.5}, {"leaf_fill": 1.1}, {"leaf_fill": float("nan")}, {"page_bytes": 5000},
        {"page_bytes": 4096, "dims": 40},
    ],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError):
        TreeState.create(**{"dims": 2, **wrong})


def test_cut_or_lengthened_bytes_are_corruption(state):
    data = state.encode()
    for wrong in (b"", data[:-1], data[: HEADER.size], data[: HEADER.size - 1], data + b"\0"):
        with pytest.raises(CorruptionError, match="bytes, expected"):
            TreeState.decode(wrong, state.root)


FIELDS = [
    "format", "dims", "levels", "base_class", "flags", "records", "max_overlap", "min_fanout", "min_fill", "leaf_fill",
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dims", 0), ("dims", 65), ("dims", 4), ("levels", 0), ("levels", 65), ("base_class", 7), ("flags", 1),
        ("records", 0), ("records", 2**63), ("max_overlap", float("nan")), ("min_fanout", 0.9), ("min_fill", -1.0),
        ("leaf_fill", float("inf")),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_corruption(state, field, value):
    data = state.encode()
    values = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True)) | {field: value}
    with pytest.raises(CorruptionError):
        TreeState.decode(HEADER.pack(*values.values()) + data[HEADER.size :], state.root)


@pytest.mark.parametrize("bounds", [[0.0, 0.0, 0.0, -1.0, 0.0, 0.0], [np.nan] * 6, [-np.inf] * 3 + [0.0] * 3])
def test_bounds_that_are_no_box_are_corruption(state, bounds):
    data = state.encode()[: HEADER.size] + struct.pack("<6d", *bounds)
    with pytest.raises(CorruptionError, match="bounds"):
        TreeState.decode(data, state.root)


def test_a_state_without_its_root_is_corruption(state):
    with pytest.raises(CorruptionError, match="root"):
        TreeState.decode(state.encode(), 0)


def test_another_format_is_told_apart_from_damage(state):
    data = state.encode()
    with pytest.raises(FormatVersionError, match="format 1, this xtree reads 2"):
        TreeState.decode(b"\1\0" + data[2:], state.root)
