"""Rows that can't all be right, two in one slot or one where no slot is, are found before anything is written."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from pages import SMALL, put

from xtree.errors import CorruptionError
from xtree.persistence.checkpoint import ROW
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.runtime import open_store

LIVE = 2  # a row's state, as checkpoints store it


def overlapping(rows, live) -> None:
    """The second live page has the slot of the first."""
    rows["offset"][live[1]] = rows["offset"][live[0]]


def misaligned(rows, live) -> None:
    """A page of 8 KiB begins in the middle of a slot."""
    rows["offset"][live[0]] += 4096


def in_another_class(rows, live) -> None:
    """A page says that it is twice as large as the slots of its file."""
    rows["size_class"][live[0]] += 1


FORGERIES = {overlapping: "a slot already in use", misaligned: "misaligned", in_another_class: "class"}


@pytest.fixture(params=FORGERIES, ids=lambda forgery: forgery.__name__)
def forged(request, tmp_path, monkeypatch):
    """(path of an index whose rows were changed in its checkpoints, CRCs and all; what an error says of it)."""
    original = DurableStore._snapshot_rows

    def forge(self, epoch, file_of_window):
        counts, rows = original(self, epoch, file_of_window)
        view = np.frombuffer(rows, dtype=ROW)
        request.param(view, np.flatnonzero(view["state"] == LIVE))
        return counts, rows

    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    put(store, {f"n{i}": str(i) for i in range(4)}, size_class=1)
    monkeypatch.setattr(DurableStore, "_snapshot_rows", forge)
    store.close()
    monkeypatch.undo()
    return path, FORGERIES[request.param]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_forged_rows_are_found_by_a_check_before_anything_is_written(forged, mode):
    path, message = forged
    with pytest.raises(CorruptionError, match=message), contextlib.closing(open_store(path, mode, SMALL)) as store:
        store.check()


def test_forged_rows_are_found_at_the_first_write(forged):
    path, message = forged
    with pytest.raises(CorruptionError, match=message), contextlib.closing(open_store(path, "r+", SMALL)) as store:
        put(store, {"new": "page"})


def test_rows_that_are_right_pass_the_same_checks(tmp_path):
    store = open_store(tmp_path / "index", config=SMALL)
    put(store, {f"n{i}": str(i) for i in range(4)}, size_class=1)
    store.close()
    for mode in ("r", "r+"):
        with contextlib.closing(open_store(tmp_path / "index", mode, SMALL)) as store:
            store.check()
            assert store.allocator.slots_used == 0
            if mode == "r+":
                put(store, {"new": "page"})
                assert store.allocator.slots_used == 5
                store.check()
