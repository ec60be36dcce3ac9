"""The object table: each life of a handle has its own tag, and handles are reused first in, first out.

Promises (What is on the disk before what):

- a handle's tag moves once a life, and is kept by checkpoints; one that comes again belongs to its new owner:
  test_a_handles_tag_moves_once_a_life_and_skips_zero,
  test_stored_table.py::test_a_snapshot_holds_what_was_visible_at_its_epoch_and_every_tag,
  test_store.py::test_a_handle_reused_until_its_tag_comes_again_is_its_new_owners,
  test_recovery.py::test_pages_made_and_removed_until_their_tags_wrap_are_logged_once.
- threads without the interpreter's lock share the object table, under the store's; a full shard gives way to another:
  test_threads_without_the_interpreter_lock_share_a_table,
  test_a_full_shard_gives_way_to_another_and_a_full_table_is_a_capacity_error,
  test_recovery.py::test_pages_in_many_shards_survive_a_crash_and_a_clean_close.
"""

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.table_rows import INFINITE, handle_of, live, tag_of, totals

from xtree.errors import CapacityError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.pages import node_id
from xtree.persistence.pages.file_places import FilePlaces
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.pages.stored_table import restore_table, snapshot_table
from xtree.persistence.store.memory_store import MemoryStore
from xtree.tools.probes import loops

pytestmark = pytest.mark.threads


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


@pytest.fixture
def table():
    made = ObjectTable()
    yield made
    made.check()


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


def test_shards_get_their_rows_in_turn():
    table = ObjectTable(shard_rows=100, max_shards=4)
    for i in range(1000):
        node = live(table, address=i)
        assert node_id.unpack(node)[0] == i // 100 % 4
        assert len(table.stats()["shards"]) == min(4, i // 100 + 1)
    table.check()
    assert [shard["handles"] for shard in table.stats()["shards"]] == [300, 300, 200, 200]
    assert table.stats()["handles"] == 1000
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


def test_a_handle_freed_first_in_any_shard_is_used_first_and_before_a_new_one():
    table = ObjectTable(shard_rows=10)
    nodes = [live(table) for _ in range(35)]
    for node in nodes[::-3]:
        table.retire_node(node, 2)
    while table.reclaim(2):
        pass
    again = [table.reserve_node(1, 0, 0) for _ in nodes[::-3]]
    assert list(map(handle_of, again)) == list(map(handle_of, nodes[::-3]))
    assert table.stats()["handles"] == 35
    table.check()


def test_limits_that_cannot_be_are_refused():
    for limits in ({"max_shards": 0}, {"max_shards": 65}, {"slabs_per_shard": 1 << 20}, {"shard_rows": 0}):
        with pytest.raises(ValueError, match="expected up to 64"):
            ObjectTable(**limits)


@pytest.mark.parametrize("shard_rows", [1 << 20, 50])
def test_threads_without_the_interpreter_lock_share_a_table(shard_rows):
    store = MemoryStore(ObjectTable(shard_rows))
    table = store.table
    kept = [live(table, address=i) for i in range(300)]
    threads = [threading.Thread(target=loops.use_handles, args=(store, 100_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table.check()
    abandoned, reclaimed = len(range(0, 100_000, 3)), len(range(1, 100_000, 3))
    assert totals(table)["live"] == 300 and totals(table)["reserved"] == 0
    assert totals(table)["retired"] == 4 * (100_000 - abandoned - reclaimed)
    assert all(map(table.resolves, kept))
    while table.reclaim(store.published.epoch):
        pass
    table.check()
    assert totals(table)["free"] == table.stats()["handles"] - 300


class TableModel(RuleBasedStateMachine):
    """The table against dicts and lists, now and then restored from its snapshot."""

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
        snapshot = snapshot_table(self.table, self.epoch, [10, 11, 12, 13, 14, 15, 16])
        self.table = ObjectTable()
        files = {10 + size_class: (size_class, size_class) for size_class in range(7)}
        restore_table(self.table, self.epoch, *snapshot, FilePlaces(files, 4 << 20))
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
