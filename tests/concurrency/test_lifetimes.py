"""Nothing outlives its use: how many catalogs, write sets and stores are left after work on very many trees.

Promises (Nothing acknowledged is lost):

- nothing outlives its use: views, locks, transactions, snapshots and closed handles keep no catalog, page list or
  store of then; memory is linear in the trees:
  test_trees_that_were_read_and_written_keep_no_catalog_of_then,
  test_transactions_and_snapshots_that_have_ended_keep_nothing, test_what_has_ended_keeps_no_store,
  test_a_closed_handle_keeps_neither_catalog_nor_rows,
  test_a_tree_takes_less_than_two_kilobytes_however_many_there_are.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator

import pytest
from support.places import EXAMPLES

import xtree
from xtree.forest import Forest
from xtree.persistence.opening import open_store
from xtree.persistence.session import Session
from xtree.persistence.store.catalog import Catalog
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.store import Pin, Published
from xtree.persistence.store.write_set import WriteSet, begin

sys.path.insert(0, str(EXAMPLES))
from page_stack import StackState

BOX = [0.0, 0.0, 1.0, 1.0]
KINDS = (Catalog, Published, WriteSet, Pin)

GROWTH = """
import sys
import xtree

def private_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

handles, figures = [], []
with xtree.Runtime(sys.argv[1], durability="eventual") as runtime:
    for n in (1000, 4000, 7000):
        for i in range(len(handles), n):
            tree = runtime.tree(f"t{i}", 2)
            tree.insert(i, [0.0, 0.0, 1.0, 1.0])
            tree.count([0.0, 0.0, 1.0, 1.0])
            tree.insert(-i, [0.0, 0.0, 1.0, 1.0])
            handles.append(tree)
        figures.append(private_kib())
print(*figures)
"""


def alive() -> Counter[type]:
    """How many objects of each kind there are."""
    gc.collect()
    return Counter(type(one) for one in gc.get_objects() if type(one) in KINDS)


@contextlib.contextmanager
def no_more_than(most: dict[type, int]) -> Iterator[None]:
    before = alive()
    yield
    left = alive()
    left.subtract(before)
    assert all(left[kind] <= most[kind] for kind in KINDS), left


# Those of what is published now; and a thread may still have the last commit in a local variable.
ONE_OF_EACH = {Catalog: 2, Published: 2, WriteSet: 1, Pin: 0}


@pytest.mark.parametrize("kind", ["memory", "durable"])
def test_trees_that_were_read_and_written_keep_no_catalog_of_then(kind, tmp_path):
    with no_more_than(ONE_OF_EACH):
        store = MemoryStore() if kind == "memory" else open_store(tmp_path / "index", mode="x")
        session = Session(store)
        forest = Forest(session, None)
        trees = []
        for i in range(1500):
            tree = xtree.XTree.__new__(xtree.XTree)
            tree._attach(session, forest.find_or_make(f"t{i}", 2), None, False)
            trees.append(tree)
            tree.insert(i, BOX)
            assert tree.count(BOX) == 1
            tree.insert(-i, BOX)
    assert len(trees) == len(forest.names())
    store.close()


def test_trees_in_memory_keep_one_catalog_each():
    with no_more_than({Catalog: 1000, Published: 1000, WriteSet: 0, Pin: 0}):
        trees = [xtree.XTree(2) for _ in range(1000)]
        for tree in trees:
            for i in range(3):
                tree.insert(i, BOX)
                assert tree.count(BOX) == i + 1
    with no_more_than({Catalog: -999, Published: -999, WriteSet: 0, Pin: 0}):
        del trees, tree


def test_transactions_and_snapshots_that_have_ended_keep_nothing(tmp_path):
    ended: list[object] = []
    with xtree.Runtime(tmp_path / "index", durability="eventual") as runtime, no_more_than(ONE_OF_EACH):
        names = [f"t{i}" for i in range(20)]
        for name in names:
            runtime.tree(name, 2)
        runtime.structure("stack", StackState)
        for i in range(1200):
            name = names[i % 20]
            with runtime.transaction(trees=names[:3]) as tx:
                ended += [tx, tx.tree(name), tx.structure("stack")]
                tx.tree(name).insert(i, BOX)
            with contextlib.suppress(ZeroDivisionError), runtime.tree(name).transaction() as single:
                ended.append(single)
                single.insert(-i, BOX)
                raise ZeroDivisionError
            snapshot = runtime.tree(name).snapshot()
            assert snapshot.count(BOX) == i // 20 + 1
            snapshot.close()
            ended += [snapshot, runtime.structure("stack", StackState)]
    assert len(ended) == 6 * 1200


def test_what_has_ended_keeps_no_store(tmp_path):
    tree = xtree.XTree(2)
    with tree.transaction() as tx:
        tx.insert(1, BOX)
    aborted = tree.transaction()
    aborted.__enter__()
    aborted.abort()
    snapshot = tree.snapshot()
    snapshot.close()
    in_memory = weakref.ref(tree._store)
    runtime = xtree.Runtime(tmp_path / "index")
    runtime.tree("a", 2)
    with runtime.transaction(trees=["a"]) as several:
        part = several.tree("a")
        part.insert(1, BOX)
    durable = weakref.ref(runtime._store)
    runtime.close()
    del tree, runtime
    gc.collect()
    assert (in_memory(), durable()) == (None, None)
    for ended in (tx, aborted, several):
        assert "Transaction" in repr(ended)
        with pytest.raises(xtree.TransactionError, match="committed|aborted"):
            ended.__enter__()
    for use in (lambda: tx.count(BOX), lambda: part.count(BOX), lambda: several.tree("a"), several.commit):
        with pytest.raises(xtree.TransactionError, match="committed"):
            use()
    with pytest.raises(xtree.ClosedError, match="the snapshot is closed"):
        snapshot.count(BOX)
    assert "closed" in repr(snapshot) and "closed" in snapshot._repr_html_()


def test_a_transaction_keeps_its_index_open_until_it_ends(tmp_path):
    with xtree.open(tmp_path / "index", dims=2).transaction() as tx:
        gc.collect()
        tx.insert(1, BOX)
    assert tx.status == "committed"
    gc.collect()
    with xtree.open(tmp_path / "index") as tree:
        assert len(tree) == 1


def test_a_closed_handle_keeps_neither_catalog_nor_rows(tmp_path):
    with no_more_than({Catalog: 2, Published: 2, WriteSet: 0, Pin: 0}):
        tree = xtree.XTree(2)
        runtime = xtree.Runtime(tmp_path / "index")
        for i in range(40):
            runtime.tree(f"t{i}", 2).insert(1, BOX)
        tree.insert(1, BOX)
        stores = tree._store, runtime._store
        tree.close()
        runtime.close()
        for store in stores:
            assert (len(store.published.catalog), len(store.table)) == (0, 0)
    assert "closed" in repr(tree) and "closed" in repr(runtime)


def test_a_write_set_that_has_ended_has_no_pages(store):
    outcomes = {}
    for end in ("commit", "abort"):
        write_set = begin(store)
        assert write_set.base is store.published
        write_set.add_page(200, 0, b"content")
        write_set.commit({}) if end == "commit" else write_set.abort()
        outcomes[write_set.status] = (write_set.base, len(write_set), write_set.changed)
    assert outcomes == {"committed": (None, 0, False), "aborted": (None, 0, False)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc")
def test_a_tree_takes_less_than_two_kilobytes_however_many_there_are(tmp_path):
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "index")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    first, second, third = map(int, run.stdout.split())
    assert (second - first) * 1024 < 3000 * 2000, run.stdout
    assert (third - second) * 1024 < 3000 * 2000, run.stdout
