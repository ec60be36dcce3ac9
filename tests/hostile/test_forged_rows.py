"""Rows that can't be right, such as two in one slot or one outside of all slots, are found before anything is written.

Promises (One writer, many readers):

- rows that overlap are found by `check()` and at the first write:
  test_forged_rows_are_found_by_a_check_before_anything_is_written, test_forged_rows_are_found_at_the_first_write.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from support.text_pages import SMALL, put

from xtree.errors import CorruptionError
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files.checkpoint import ROW
from xtree.persistence.opening import open_store


def overlapping(rows) -> None:
    """The second live page has the slot of the first."""
    rows["offset_4k"][1] = rows["offset_4k"][0]


def misaligned(rows) -> None:
    """A page of 8 KiB begins in the middle of a slot."""
    rows["offset_4k"][0] += 1


def in_another_class(rows) -> None:
    """A page says that it is twice as large as the slots of its file."""
    rows["size_class"][0] += 1


def twice(rows) -> None:
    """The second live page has the handle of the first."""
    rows["node_id"][1] = rows["node_id"][0]


def out_of_order(rows) -> None:
    """The first two rows have changed places."""
    rows[[0, 1]] = rows[[1, 0]]


def never_given_out(rows) -> None:
    """A page's handle is beyond all those that the checkpoint has tags for."""
    rows["node_id"][-1] += 1000 << 8


def in_another_life(rows) -> None:
    """A page's tag isn't that of its handle."""
    rows["node_id"][0] += 1


def from_the_future(rows) -> None:
    """A page was born after the checkpoint's epoch."""
    rows["birth"][0] += 1000


FORGERIES = {
    overlapping: "a slot already in use",
    misaligned: "misaligned",
    in_another_class: "class",
    twice: "out of order",
    out_of_order: "out of order",
    never_given_out: "never given out",
    in_another_life: "tag",
    from_the_future: "birth",
}


@pytest.fixture(params=FORGERIES, ids=lambda forgery: forgery.__name__)
def forged(request, tmp_path, monkeypatch):
    """(path of an index, what an error says of it); rows of its checkpoints were changed, with right CRCs."""
    original = DurableStore.snapshot_rows

    def forge(self, epoch, file_of_window):
        handles, tags, rows = original(self, epoch, file_of_window)
        request.param(np.frombuffer(rows, dtype=ROW))
        return handles, tags, rows

    path = tmp_path / "index"
    store = open_store(path, config=SMALL)
    put(store, {f"n{i}": str(i) for i in range(4)}, size_class=1)
    monkeypatch.setattr(DurableStore, "snapshot_rows", forge)
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
