"""The object table: one tag a life, handles reused first in first out, rows that survive a checkpoint."""

import random
import struct
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xtree.errors import CapacityError, CorruptionError
from xtree.persistence import node_id
from xtree.persistence.file_places import FilePlaces
from xtree.persistence.memory import fail_allocation
from xtree.persistence.object_table import ROW_BYTES, ObjectTable

INFINITE = 2**64 - 1
ROW = struct.Struct("<QQIIIBBH")


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


@pytest.fixture
def table():
    made = ObjectTable()
    yield made
    made.check()


def handle_of(node):
    return node >> 8


def tag_of(node):
    return node & 255


def live(table, epoch=1, kind=1, size_class=0, address=0, crc=0):
    node = table.reserve_node(kind, size_class, address)
    table.seal_node(node, crc)
    table.publish_node(node, epoch)
    return node


def row(handle=1, tag=1, kind=1, size_class=0, file=5, page=1, birth=1, crc=0, reserved=0):
    """A live page's row; `page` is the offset of its slot in units of 4096 bytes."""
    return ROW.pack(handle << 8 | tag, birth, file, page, crc, kind, size_class, reserved)


def places(files, size_class=0):
    """FilePlaces of {file number: window}, all of one size class, of files up to 4 MiB."""
    return FilePlaces({number: (window, size_class) for number, window in files.items()}, 4 << 20)


def restored(rows, files, tags=b"\1", counts=None, **limits):
    """A table of a checkpoint of epoch 9 with these tags, by default all in one shard, and rows."""
    table = ObjectTable(**limits)
    table.restore(9, [len(tags)] if counts is None else counts, tags, rows, places(files))
    return table


def totals(table):
    """stats() without the shards'."""
    return {name: value for name, value in table.stats().items() if name != "shards"}


def shard_handle(shard, slot):
    return shard << 50 | slot


def test_the_layout_of_a_stored_row_has_32_bytes():
    assert ROW_BYTES == ROW.size == 32


def test_handles_are_given_out_in_order_and_zero_never(table):
    nodes = [table.reserve_node(1, 0, 0) for _ in range(5)]
    assert [node_id.unpack(node) for node in nodes] == [(0, handle, 1) for handle in range(1, 6)]


def test_a_handles_tag_moves_once_a_life_and_skips_zero(table):
    tags = []
    for epoch in range(600):
        node = table.reserve_node(1, 0, 0)
        assert handle_of(node) == 1
        tags.append(tag_of(node))
        if epoch % 3:
            table.publish_node(node, epoch)
            assert tag_of(table.describe(node)["node"]) == tags[-1]
            table.retire_node(node, epoch + 1)
            assert tag_of(table.describe(node)["node"]) == tags[-1]
            table.reclaim(epoch + 1)
        else:
            table.abandon_node(node)
        assert table.describe(node)["tag"] == tags[-1]
    assert tags == [i % 255 + 1 for i in range(600)]


def test_free_handles_are_reused_first_in_first_out(table):
    nodes = [table.reserve_node(1, 0, 0) for _ in range(6)]
    for i in (4, 0, 2):
        table.abandon_node(nodes[i])
    assert [handle_of(table.reserve_node(1, 0, 0)) for _ in range(4)] == [5, 1, 3, 7]


def test_a_node_id_of_an_earlier_life_does_not_resolve(table):
    old = live(table, epoch=1)
    table.retire_node(old, 2)
    assert table.resolves(old)
    table.reclaim(2)
    assert not table.resolves(old)
    new = live(table, epoch=3)
    assert handle_of(new) == handle_of(old) and table.resolves(new) and not table.resolves(old)
    table.verify_node(old)
    assert table.describe(new)["verified"]


@pytest.mark.parametrize("node", [0, 1, 2 << 8 | 1, 2**64 - 1, 1 << 58 | 1 << 8 | 1, (2**50 - 1) << 8 | 1])
def test_a_node_that_was_never_given_out_does_not_resolve(table, node):
    live(table)
    assert not table.resolves(node)
    table.verify_node(node)
    if handle_of(node) != 1:
        with pytest.raises(KeyError, match="never given out"):
            table.describe(node)


def test_a_row_goes_from_reserved_to_live_to_retired_to_free(table):
    node = table.reserve_node(2, 3, 1 << 48 | 8192)
    expected = {
        "node": node,
        "handle": 1,
        "tag": 1,
        "state": "reserved",
        "verified": True,
        "kind": 2,
        "size_class": 3,
        "window": 1,
        "offset": 8192,
        "birth": INFINITE,
        "retire": INFINITE,
        "crc": 0,
    }
    assert table.describe(node) == expected
    table.seal_node(node, 0xABCD)
    table.publish_node(node, 5)
    assert table.describe(node) == {**expected, "state": "live", "birth": 5, "crc": 0xABCD}
    table.retire_node(node, 9)
    assert table.describe(node) == {**expected, "state": "retired", "birth": 5, "retire": 9, "crc": 0xABCD}
    assert table.reclaim(8) is None
    assert table.reclaim(9) == (1 << 48 | 8192, 3)
    assert table.reclaim(9) is None
    assert (table.describe(node)["state"], table.describe(node)["verified"]) == ("free", False)


def test_pages_are_reclaimed_in_the_order_of_their_retirement(table):
    nodes = [live(table, address=i) for i in range(5)]
    for epoch, i in enumerate((3, 1, 4), start=2):
        table.retire_node(nodes[i], epoch)
    assert [table.reclaim(3) for _ in range(3)] == [(3, 0), (1, 0), None]
    assert table.reclaim(100) == (4, 0)
    assert totals(table) == {"live": 2, "reserved": 0, "retired": 0, "free": 3, "handles": 5}


def test_only_a_row_in_the_right_state_moves_on(table):
    reserved, published = table.reserve_node(1, 0, 0), live(table)
    with pytest.raises(RuntimeError, match="isn't live"):
        table.retire_node(reserved, 3)
    for call in (lambda n: table.publish_node(n, 3), lambda n: table.seal_node(n, 3), table.abandon_node):
        for node in (published, reserved + 1, 77 << 8 | 1, 0):
            with pytest.raises(RuntimeError, match="isn't reserved"):
                call(node)
    table.retire_node(published, 7)
    later = live(table)
    with pytest.raises(ValueError, match="comes before"):
        table.retire_node(later, 6)


def test_a_kind_or_class_that_no_page_has_is_refused(table):
    for kind, size_class in ((0, 0), (256, 0), (1, -1), (1, 7)):
        with pytest.raises(ValueError, match="expected 1 to 255"):
            table.reserve_node(kind, size_class, 0)


def test_a_failed_allocation_leaves_the_table_as_it_was():
    table = ObjectTable()
    fail_allocation(1)
    with pytest.raises(MemoryError):
        table.reserve_node(1, 0, 0)
    table.check()
    assert table.stats()["handles"] == 0
    for _ in range(65535):
        table.reserve_node(1, 0, 0)
    fail_allocation(1)
    with pytest.raises(MemoryError):
        table.reserve_node(1, 0, 0)
    table.check()
    assert handle_of(table.reserve_node(1, 0, 0)) == 65536
    table.check()


def test_what_is_visible_at_an_epoch_is_listed(table):
    early, late, gone, _ = (table.reserve_node(7, 2, i << 40 | 16384) for i in range(4))
    for node, epoch in ((early, 3), (late, 9), (gone, 2)):
        table.seal_node(node, epoch * 11)
        table.publish_node(node, epoch)
    table.retire_node(gone, 6)
    assert [table.visible(epoch)["node"].tolist() for epoch in (1, 2, 5, 6, 9)] == [
        [], [gone], [early, gone], [early], [early, late],
    ]  # fmt: skip
    row = table.visible(6)[0]
    described = table.describe(early)
    assert {name: int(row[name]) for name in ("kind", "size_class", "window", "offset", "birth", "retire", "crc")} == {
        name: described[name] for name in ("kind", "size_class", "window", "offset", "birth", "retire", "crc")
    }


def test_rows_never_move_when_slabs_are_added(table):
    nodes = [live(table, address=i) for i in range(200_000)]
    assert all(table.describe(nodes[i])["offset"] == i for i in range(0, 200_000, 997))
    assert len(table) == 200_000


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
        assert table.snapshot(epoch, files) == (counts, b"\1\1\1\1", b"".join(rows))
    table.abandon_node(reserved)
    table.reclaim(10)
    table.reserve_node(1, 0, 0)
    assert table.snapshot(5, files) == (counts, b"\1\1\1\2", kept_row + young_row)
    with pytest.raises(CorruptionError, match="row 2 of the object table: in a window without a data file"):
        table.snapshot(5, files[:3])


def test_a_free_handle_costs_a_checkpoint_one_byte():
    table = ObjectTable()
    nodes = [live(table, 1) for _ in range(20_000)]
    kept = set(nodes[::1000])
    for node in nodes:
        if node not in kept:
            table.retire_node(node, 2)
    counts, tags, rows = table.snapshot(2, [5])
    assert (counts[0], len(tags), len(rows)) == (20_000, 20_000, 20 * ROW_BYTES)
    while table.reclaim(2):
        pass
    assert table.snapshot(2, [5]) == (counts, tags, rows)


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
    counts, tags, rows = table.snapshot(3000, list(files))
    again.restore(3000, counts, tags, rows, FilePlaces(files, 4 << 20))
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
    assert again.snapshot(3000, [numbers.get(window, 0) for window in range(10)]) == (counts, tags, rows)
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


def test_the_snapshot_of_an_empty_table_is_empty(table):
    counts, tags, rows = table.snapshot(0, [])
    assert (counts, tags, rows) == ([0] * 64, b"", b"")
    table.restore(0, [], b"", b"", places({}))
    table.restore(0, counts, tags, rows, places({}))
    assert table.stats()["handles"] == 0


def test_rows_and_tags_are_stored_shard_by_shard():
    rows = row(tag=3) + row(shard_handle(3, 2), tag=4, page=2)
    table = restored(rows, {5: 2}, bytes([3, 7, 4, 0]), [1, 0, 0, 3])
    table.check()
    third = shard_handle(3, 0)
    assert [r["node"] for r in table.rows()] == [
        1 << 8 | 3, (third | 1) << 8 | 7, (third | 2) << 8 | 4, (third | 3) << 8
    ]
    assert [shard["handles"] for shard in table.stats()["shards"]] == [1, 0, 0, 3]
    assert table.snapshot(9, [0, 0, 5]) == ([1, 0, 0, 3] + [0] * 60, bytes([3, 7, 4, 0]), rows)


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
        ObjectTable().restore(INFINITE, [1], b"\1", row(birth=INFINITE), places({5: 0}))


def test_a_slot_of_a_larger_class_is_aligned_to_its_size():
    ObjectTable().restore(9, [1], b"\1", row(size_class=1, page=3), places({5: 0}, 1))
    with pytest.raises(CorruptionError, match="misaligned"):
        ObjectTable().restore(9, [1], b"\1", row(size_class=1, page=2), places({5: 0}, 1))


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
        ObjectTable().restore(9, [1], b"\1", row(size_class=6, page=1024 - 64 + 1), places({5: 0}, 6))


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


def test_rows_are_restored_into_an_empty_table_only(table):
    live(table)
    with pytest.raises(RuntimeError, match="empty table"):
        table.restore(0, [], b"", b"", places({}))


def test_no_memory_at_a_restore_is_a_memory_error():
    table, files = ObjectTable(), places({5: 0})
    fail_allocation(1)
    with pytest.raises(MemoryError):
        table.restore(9, [1], b"\1", row(), files)
    fail_allocation(1)
    with pytest.raises(MemoryError):
        places({5: 0})


# Shards.


def test_further_shards_open_as_the_table_grows():
    table = ObjectTable(shard_rows=100)
    for i in range(1000):
        live(table, address=i)
        assert len(table.stats()["shards"]) == max(1, min(64, -(-(i + 1) // 100)))
    table.check()
    assert sum(shard["handles"] for shard in table.stats()["shards"]) == table.stats()["handles"] == 1000
    assert sorted(r["offset"] for r in table.rows()) == list(range(1000))


def test_a_table_has_64_shards_at_most():
    table = ObjectTable(shard_rows=1)
    nodes = {table.reserve_node(1, 0, 0) for _ in range(500)}
    assert len(nodes) == 500 and len(table.stats()["shards"]) == 64
    assert {node_id.unpack(node)[0] for node in nodes} == set(range(64))
    assert all(map(table.resolves, nodes))
    table.check()


def test_a_full_shard_gives_way_to_another_and_a_full_table_is_a_capacity_error():
    table = ObjectTable(max_shards=2, slabs_per_shard=1)
    nodes = [table.reserve_node(1, 0, 0) for _ in range(2 * 65535)]
    assert [shard["handles"] for shard in table.stats()["shards"]] == [65535, 65535]
    for _ in range(2):
        with pytest.raises(CapacityError, match="all 131070 handles"):
            table.reserve_node(1, 0, 0)
    for node in (nodes[-1], nodes[0]):
        table.abandon_node(node)
        assert handle_of(table.reserve_node(1, 0, 0)) == handle_of(node)
    table.check()


def test_a_handle_freed_in_any_shard_is_used_before_a_new_one():
    table = ObjectTable(shard_rows=10)
    nodes = [live(table) for _ in range(35)]
    for node in nodes[::3]:
        table.retire_node(node, 2)
    while table.reclaim(2):
        pass
    again = [table.reserve_node(1, 0, 0) for _ in nodes[::3]]
    assert sorted(map(handle_of, again)) == sorted(map(handle_of, nodes[::3]))
    assert table.stats()["handles"] == 35
    table.check()


def test_limits_that_cannot_be_are_refused():
    for limits in ({"max_shards": 0}, {"max_shards": 65}, {"slabs_per_shard": 1 << 20}, {"shard_rows": 0}):
        with pytest.raises(ValueError, match="expected up to 64"):
            ObjectTable(**limits)


@pytest.mark.parametrize("shard_rows", [1 << 20, 50])
def test_threads_without_the_interpreter_lock_share_a_table(shard_rows):
    table = ObjectTable(shard_rows)
    kept = [live(table, address=i) for i in range(300)]
    threads = [threading.Thread(target=table.exercise, args=(200_000, 7)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table.check()
    assert totals(table)["live"] == 300 and totals(table)["reserved"] == 0
    assert totals(table)["retired"] == 4 * (200_000 - len(range(0, 200_000, 3)) - len(range(1, 200_000, 3)))
    assert all(map(table.resolves, kept))
    while table.reclaim(7):
        pass
    table.check()
    assert totals(table)["free"] == table.stats()["handles"] - 300


def test_threads_that_reserve_and_abandon_never_get_the_same_handle():
    table = ObjectTable(shard_rows=64)
    held = [set() for _ in range(4)]

    def work(mine, seed):
        rng = random.Random(seed)
        for _ in range(5000):
            if mine and rng.random() < 0.4:
                table.abandon_node(mine.pop())
            else:
                mine.add(table.reserve_node(1, 0, seed))

    threads = [threading.Thread(target=work, args=(mine, seed)) for seed, mine in enumerate(held)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table.check()
    assert len(set().union(*held)) == sum(map(len, held)) == table.stats()["reserved"]
    for seed, mine in enumerate(held):
        assert {table.describe(node)["offset"] for node in mine} <= {seed}


class TableModel(RuleBasedStateMachine):
    """The table against dicts and lists, restarted from its snapshot at times."""

    @initialize()
    def begin(self):
        self.table = ObjectTable()
        self.epoch = 10
        self.reserved, self.live, self.retired = {}, {}, []
        self.free, self.tags = [], {}
        self.stale = set()

    @rule(times=st.integers(1, 5), size_class=st.integers(0, 6), number=st.integers(0, 14))
    def reserve(self, times, size_class, number):
        address = size_class << 48 | 4096 + (4096 << size_class) * number
        for _ in range(times):
            handle = self.free.pop(0) if self.free else len(self.tags) + 1
            tag = self.tags.get(handle, 0) % 255 + 1
            node = self.table.reserve_node(1, size_class, address)
            assert node == handle << 8 | tag
            self.tags[handle] = tag
            self.reserved[node] = (address, size_class)
            self.stale.discard(node)

    @precondition(lambda self: self.reserved)
    @rule()
    def abandon(self):
        node = next(iter(self.reserved))
        self.table.abandon_node(node)
        del self.reserved[node]
        self.free.append(handle_of(node))
        self.stale.add(node)

    @precondition(lambda self: self.reserved)
    @rule()
    def publish(self):
        self.epoch += 1
        for node in self.reserved:
            self.table.publish_node(node, self.epoch)
        self.live |= self.reserved
        self.reserved = {}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def retire(self, data):
        self.epoch += 1
        node = data.draw(st.sampled_from(sorted(self.live)))
        self.table.retire_node(node, self.epoch)
        self.retired.append((node, self.epoch, self.live.pop(node)))

    @rule(behind=st.integers(0, 5))
    def reclaim(self, behind):
        while (page := self.table.reclaim(self.epoch - behind)) is not None:
            node, epoch, expected = self.retired.pop(0)
            assert epoch <= self.epoch - behind and page == expected
            self.free.append(handle_of(node))
            self.stale.add(node)
        assert not self.retired or self.retired[0][1] > self.epoch - behind

    @precondition(lambda self: self.tags)
    @rule()
    def restart(self):
        snapshot = self.table.snapshot(self.epoch, [10, 11, 12, 13, 14, 15, 16])
        self.table = ObjectTable()
        files = {10 + size_class: (size_class, size_class) for size_class in range(7)}
        self.table.restore(self.epoch, *snapshot, FilePlaces(files, 4 << 20))
        self.stale |= set(self.reserved) | {node for node, _, _ in self.retired}
        self.reserved, self.retired = {}, []
        self.free = sorted(set(self.tags) - {handle_of(node) for node in self.live})

    @invariant()
    def agrees(self):
        self.table.check()
        assert totals(self.table) == {
            "live": len(self.live),
            "reserved": len(self.reserved),
            "retired": len(self.retired),
            "free": len(self.free),
            "handles": len(self.tags),
        }
        present = [*self.reserved, *self.live, *(node for node, _, _ in self.retired)]
        assert all(map(self.table.resolves, present))
        assert not any(map(self.table.resolves, self.stale))


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_retired_page_keeps_its_birth_epoch_and_its_size_class():
    table = ObjectTable()
    node = table.reserve_node(3, 2, 1 << 20)
    table.seal_node(node, 7)
    table.publish_node(node, 5)
    table.retire_node(node, 9)
    row = table.describe(node)
    assert (row["birth"], row["retire"], row["size_class"], row["state"]) == (5, 9, 2, "retired")
