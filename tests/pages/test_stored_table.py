"""The object table in a checkpoint: what is stored, and what is refused when it is restored."""

import random
import struct

import pytest
from support.table_rows import INFINITE, handle_of, live, shard_handle, tag_of, totals

from xtree.errors import CorruptionError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.stored_table import ROW_BYTES, restore_table, snapshot_table

ROW = struct.Struct("<QQIIIBBH")


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


def row(handle=1, tag=1, kind=1, size_class=0, file=5, page=1, birth=1, crc=0, reserved=0):
    """A live page's row; `page` is the offset of its slot in units of 4096 bytes."""
    return ROW.pack(handle << 8 | tag, birth, file, page, crc, kind, size_class, reserved)


def places(files, size_class=0):
    """FilePlaces of {file number: window}, all of one size class, of files up to 4 MiB."""
    return FilePlaces({number: (window, size_class) for number, window in files.items()}, 4 << 20)


def restored(rows, files, tags=b"\1", counts=None, **limits):
    """The table restored from a checkpoint of epoch 9 with these rows and tags, by default all in one shard."""
    table = ObjectTable(**limits)
    restore_table(table, 9, [len(tags)] if counts is None else counts, tags, rows, places(files))
    return table


def test_the_layout_of_a_stored_row_has_32_bytes():
    assert ROW_BYTES == ROW.size == 32


def test_a_snapshot_holds_what_was_visible_at_its_epoch_and_every_tag():
    table = ObjectTable()
    old = live(table, 1)
    live(table, 2, crc=7, address=3 << 48 | 4096)
    live(table, 5)
    table.retire_node(old, 4)
    reserved = table.reserve_node(1, 0, 0)
    files = [10, 11, 12, 13]
    old_row, kept_row = row(1, file=10, page=0), row(2, file=13, birth=2, crc=7)
    young_row = row(3, file=10, page=0, birth=5)
    counts = [4] + [0] * 63
    for epoch, rows in ((3, [old_row, kept_row]), (4, [kept_row]), (5, [kept_row, young_row])):
        assert snapshot_table(table, epoch, files) == (counts, b"\1\1\1\1", b"".join(rows))
    table.abandon_node(reserved)
    table.reclaim(10)
    table.reserve_node(1, 0, 0)
    assert snapshot_table(table, 5, files) == (counts, b"\1\1\1\2", kept_row + young_row)
    with pytest.raises(CorruptionError, match="row 2 of the object table: in a window without a data file"):
        snapshot_table(table, 5, files[:3])


def test_a_free_handle_costs_a_checkpoint_one_byte():
    table = ObjectTable()
    nodes = [live(table, 1) for _ in range(20_000)]
    kept = set(nodes[::1000])
    for node in nodes:
        if node not in kept:
            table.retire_node(node, 2)
    counts, tags, rows = snapshot_table(table, 2, [5])
    assert (counts[0], len(tags), len(rows)) == (20_000, 20_000, 20 * ROW_BYTES)
    while table.reclaim(2):
        pass
    assert snapshot_table(table, 2, [5]) == (counts, tags, rows)


@pytest.mark.parametrize("shard_rows", [1 << 20, 100])
def test_a_restored_table_continues_where_the_snapshot_was_taken(shard_rows):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    table = ObjectTable(shard_rows)
    nodes = [
        live(table, i, 1 + i % 2, i % 7, (i % 7) << 48 | 4096 + (i % 9) * (4096 << i % 7), rng.getrandbits(32))
        for i in range(1, 2000)
    ]
    for node in rng.sample(nodes, 700):
        table.retire_node(node, 3000)
    while table.reclaim(3000):
        pass
    again = ObjectTable(shard_rows)
    files = {20: (7, 0), 30: (0, 1), 25: (9, 2), 7: (6, 3), 8: (5, 4), 9: (3, 5), 10: (1, 6)}
    counts, tags, rows = snapshot_table(table, 3000, list(files))
    restore_table(again, 3000, counts, tags, rows, FilePlaces(files, 4 << 20))
    again.check()
    assert again.stats() == table.stats()
    assert sum(count > 0 for count in counts) == len(again.stats()["shards"]) == (1 if shard_rows > 2000 else 20)
    windows = [window for window, _ in files.values()]
    for before, after in zip(table.rows(), again.rows(), strict=True):
        if before["state"] == "live":
            assert after == {**before, "window": windows[before["window"]], "verified": False}
        else:
            assert (after["state"], after["tag"], after["node"]) == ("free", before["tag"], before["node"])
    numbers = {window: number for number, (window, _) in files.items()}
    assert snapshot_table(again, 3000, [numbers.get(window, 0) for window in range(10)]) == (counts, tags, rows)
    node = again.reserve_node(1, 0, 0)
    taken = next(row for row in table.rows() if row["handle"] == handle_of(node))
    assert taken["state"] == "free" and tag_of(node) == taken["tag"] + 1
    again.abandon_node(node)
    if shard_rows > 2000:
        assert taken == next(row for row in table.rows() if row["state"] == "free")


def test_a_restored_page_is_not_verified_until_it_was_looked_at():
    table = restored(row(tag=9), {5: 2}, b"\x09")
    node = 1 << 8 | 9
    assert table.resolves(node) and not table.describe(node)["verified"]
    table.verify_node(node)
    assert table.describe(node)["verified"]
    table.check()


def test_the_snapshot_of_an_empty_table_is_empty():
    table = ObjectTable()
    counts, tags, rows = snapshot_table(table, 0, [])
    assert (counts, tags, rows) == ([0] * 64, b"", b"")
    restore_table(table, 0, [], b"", b"", places({}))
    restore_table(table, 0, counts, tags, rows, places({}))
    assert table.stats()["handles"] == 0
    table.check()


def test_rows_and_tags_are_stored_shard_by_shard():
    rows = row(tag=3) + row(shard_handle(3, 2), tag=4, page=2)
    table = restored(rows, {5: 2}, bytes([3, 7, 4, 0]), [1, 0, 0, 3])
    table.check()
    third = shard_handle(3, 0)
    assert [r["node"] for r in table.rows()] == [
        1 << 8 | 3, (third | 1) << 8 | 7, (third | 2) << 8 | 4, (third | 3) << 8
    ]
    assert [shard["handles"] for shard in table.stats()["shards"]] == [1, 0, 0, 3]
    assert snapshot_table(table, 9, [0, 0, 5]) == ([1, 0, 0, 3] + [0] * 60, bytes([3, 7, 4, 0]), rows)


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"tag": 2}, "impossible tag or kind"),
        ({"tag": 0}, "impossible tag or kind"),
        ({"kind": 0}, "impossible tag or kind"),
        ({"size_class": 7}, "data file of another size class"),
        ({"size_class": 1}, "data file of another size class"),
        ({"file": 6}, "data file that isn't there"),
        ({"file": 2**32 - 1}, "data file that isn't there"),
        ({"page": 0}, "outside its data file"),
        ({"page": 1024}, "outside its data file"),
        ({"page": 2**32 - 1}, "outside its data file"),
        ({"birth": 10}, "impossible birth epoch"),
        ({"birth": INFINITE}, "impossible birth epoch"),
        ({"reserved": 1}, "reserved field"),
    ],
)
def test_a_row_that_cannot_be_right_is_corruption(fields, why):
    with pytest.raises(CorruptionError, match=f"row 2 of the object table: .*{why}"):
        restored(row() + row(2, **fields), {5: 0}, b"\1\1")
    with pytest.raises(CorruptionError, match=f"row 1 of shard 63 of the object table: .*{why}"):
        restored(row() + row(shard_handle(63, 1), **fields), {5: 0}, b"\1\1", [1] + [0] * 62 + [1])


def test_the_row_of_a_handle_without_a_tag_is_corruption():
    with pytest.raises(CorruptionError, match="row 1 of the object table: impossible tag"):
        restored(row(tag=0), {5: 0}, b"\0")


def test_no_page_is_born_in_the_last_epoch():
    with pytest.raises(CorruptionError, match="impossible birth epoch"):
        restore_table(ObjectTable(), INFINITE, [1], b"\1", row(birth=INFINITE), places({5: 0}))


def test_a_slot_of_a_larger_class_is_aligned_to_its_size():
    restore_table(ObjectTable(), 9, [1], b"\1", row(size_class=1, page=3), places({5: 0}, 1))
    with pytest.raises(CorruptionError, match="misaligned"):
        restore_table(ObjectTable(), 9, [1], b"\1", row(size_class=1, page=2), places({5: 0}, 1))


@pytest.mark.parametrize(
    "handles, where",
    [
        ([2, 1], "row 1 of"),
        ([1, 1], "row 1 of"),
        ([1, 2, 2], "row 2 of"),
        ([4], "row 4 of"),
        ([0], "row 0 of"),
        ([0, 1], "row 0 of"),
        ([1, shard_handle(1, 3)], "row 3 of shard 1 of"),
        ([1, shard_handle(1, 0)], "row 0 of shard 1 of"),
        ([shard_handle(1, 1), 2], "row 2 of"),
        ([1, shard_handle(2, 1)], "row 1 of shard 2 of"),
        ([2**56 - 1], f"row {2**50 - 1} of shard 63 of"),
        ([1, 2, 3, shard_handle(1, 1), shard_handle(1, 2), 2**56 - 1], f"row {2**50 - 1} of shard 63 of"),
    ],
)
def test_rows_that_are_out_of_order_or_of_no_handle_are_corruption(handles, where):
    rows = b"".join(row(handle, page=1 + i) for i, handle in enumerate(handles))
    with pytest.raises(CorruptionError, match=f"^{where} the object table: out of order"):
        restored(rows, {5: 0}, b"\1\1\1\1\1", [3, 2])


def test_rows_of_every_handle_and_of_none_are_restored():
    every = [1, 2, 3, shard_handle(1, 1), shard_handle(1, 2)]
    for handles in (every, every[1::2], every[::4], []):
        rows = b"".join(row(handle, page=1 + handle % 1000) for handle in handles)
        table = restored(rows, {5: 0}, b"\1\1\1\1\1", [3, 2])
        table.check()
        assert [r["handle"] for r in table.rows() if r["state"] == "live"] == handles
        assert totals(table)["free"] == 5 - len(handles)


def test_a_slot_may_end_where_its_file_may_end_and_not_behind():
    restored(row(page=1023), {5: 0}).check()
    with pytest.raises(CorruptionError, match="outside its data file"):
        restore_table(ObjectTable(), 9, [1], b"\1", row(size_class=6, page=1024 - 64 + 1), places({5: 0}, 6))


def test_rows_or_tags_of_the_wrong_length_are_corruption():
    for counts, tags, rows in (([1], b"\1", bytes(31)), ([1], b"\1\1", b""), ([2], b"\1", b""), ([], b"\1", b"")):
        with pytest.raises(CorruptionError, match="tags of . handles"):
            restored(rows, {}, tags, counts)


def test_more_handles_than_a_table_has_are_corruption():
    for counts in ([2**64 - 1, 2], [2**70], [-1], [0] * 64 + [1], [1 << 30]):
        with pytest.raises(CorruptionError, match="expected up to"):
            restored(b"", {}, b"\1", counts)
    assert totals(restored(b"", {}, bytes(65535), slabs_per_shard=1))["free"] == 65535
    with pytest.raises(CorruptionError, match="65536 handles in shard 0, expected up to 65535 in each of 64"):
        restored(b"", {}, bytes(65536), slabs_per_shard=1)
    with pytest.raises(CorruptionError, match="1 handles in shard 2, expected up to .* in each of 2"):
        restored(b"", {}, bytes(1), [0, 0, 1], max_shards=2)


def test_rows_are_restored_into_an_empty_table_only():
    table = ObjectTable()
    live(table)
    with pytest.raises(RuntimeError, match="empty table"):
        restore_table(table, 0, [], b"", b"", places({}))
    table.check()


def test_no_memory_at_a_restore_is_a_memory_error():
    table, files = ObjectTable(), places({5: 0})
    fail_allocation(1)
    with pytest.raises(MemoryError):
        restore_table(table, 9, [1], b"\1", row(), files)
    fail_allocation(1)
    with pytest.raises(MemoryError):
        places({5: 0})


# Shards.
