"""check() finds pages that belong to nothing or to two trees: a writer forgot to retire them, or would do so twice.

Promises (What people touch):

- `check()` finds pages that no tree or structure has, and those that two have, in memory and on disk, beside writers;
  whatever deletes everything leaves no page (fixtures `make_tree` and `ws`):
  test_a_page_that_a_transaction_replaces_and_forgets_is_found, test_a_page_that_two_trees_have_is_found,
  test_pages_of_structures_are_looked_for_too_where_all_kinds_are_known,
  test_what_writers_make_replace_and_undo_meanwhile_is_neither_lost_nor_twice.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.damaged_indexes import lose_a_page
from support.stack_writer import PageStack, StackState, item

import xtree
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin
from xtree.roots import decode_state, entry_of
from xtree.tools.fsck import fsck

LOST, TWICE = "in a tree or structure, found 1 live ones", "number of times reached: expected 1, found 2"


def filled(tree: xtree.XTree) -> xtree.XTree:
    tree.insert_many(np.arange(900), np.random.default_rng(4).random((900, tree.dims)))
    assert tree.height == 2
    tree.check()
    return tree


def replace_and_forget(store, name: str) -> None:
    """A commit that puts a copy of the root in its place, and doesn't retire the old one."""
    state = decode_state(store.published.catalog.get(name)).copy()
    row = next(row for row in store.table.visible(store.published.epoch) if row["node"] == state.root)
    write_set = begin(store)
    root = write_set.add_page(int(row["kind"]), int(row["size_class"]), store.read_page(state.root))
    write_set.commit({name: CatalogEntry(name, "xtree", root, state.encode())})


@pytest.mark.parametrize("durable", [False, True])
def test_a_page_that_a_transaction_replaces_and_forgets_is_found(tmp_path, durable):
    tree = filled(xtree.open(tmp_path / "index", dims=2) if durable else xtree.XTree(2))
    count = len(tree)
    replace_and_forget(tree._store, tree.name)
    with pytest.raises(xtree.CorruptionError, match=LOST):
        tree.check()
    assert len(tree) == count and len(tree.items()[0]) == count  # no answer shows it
    tree.close()
    if durable:
        with xtree.open(tmp_path / "index") as tree, pytest.raises(xtree.CorruptionError, match=LOST):
            tree.check()


def test_a_page_left_when_everything_is_deleted_is_found():
    with xtree.XTree(3) as tree:
        filled(tree)
        lose_a_page(tree._store)
        tree.delete_many(*tree.items())
        assert tree.height == 0
        with pytest.raises(xtree.CorruptionError, match=LOST):
            tree.check()


def test_a_page_that_two_trees_have_is_found(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = filled(runtime.tree("one", dims=2))
        store = runtime._store
        state = decode_state(store.published.catalog.get("one"))
        begin(store).commit({"two": entry_of("two", state.copy())})
        with pytest.raises(xtree.CorruptionError, match=TWICE):
            runtime.check()
        tree.check()  # each tree by itself is right
        runtime.tree("two").check()
        begin(store).commit({"two": None})
        runtime.check()


def test_pages_of_structures_are_looked_for_too_where_all_kinds_are_known(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        filled(runtime.tree("flat", dims=2))
        stack = PageStack(runtime.structure("stack", StackState))
        for i in range(300):
            stack.push(item(i))
        runtime.check()
        store = runtime._store
        write_set = begin(store)
        lost = write_set.add_page(130, 0, b"mine")
        write_set.commit({})
        with pytest.raises(xtree.CorruptionError, match=f"{LOST}.*node {lost:#x}"):
            runtime.check()
        assert [finding.node for finding in fsck(runtime).of("damage")] == [lost]
        begin(store).commit({"odd": CatalogEntry("odd", "of a kind that nothing defines", 0, b"")})
        runtime.check()  # the page may belong to the unknown structure
        report = fsck(runtime)
        assert report.ok and report.figures["unknown_kinds"] == ["of a kind that nothing defines"]
        lose_a_page(store)
        with pytest.raises(xtree.CorruptionError, match=LOST):
            runtime.check()  # a page of a tree's kind can't belong to it


def test_a_page_that_a_structure_names_twice_is_found(tmp_path, monkeypatch):
    with xtree.Runtime(tmp_path / "index") as runtime:
        stack = PageStack(runtime.structure("stack", StackState))
        stack.push(b"one")
        pages = StackState.pages
        monkeypatch.setattr(StackState, "pages", lambda self, store: 2 * list(pages(self, store)))
        with pytest.raises(xtree.CorruptionError, match="every page once"):
            runtime.check()
        assert [finding.expected for finding in fsck(runtime).of("damage")] == ["every page once"]


@pytest.mark.parametrize("durability", ["balanced", "eventual"])
def test_what_writers_make_replace_and_undo_meanwhile_is_neither_lost_nor_twice(tmp_path, durability):
    with xtree.Runtime(tmp_path / "index", durability=durability) as runtime:
        runtime.tree("flat", dims=2)
        stack = PageStack(runtime.structure("stack", StackState))

        def write(name: str, seed: int) -> None:
            rng = np.random.default_rng(seed)
            for i in range(60):
                tree = runtime.tree(name, dims=2)
                tree.insert_many(np.arange(400), rng.random((400, 2)))
                with tree.transaction() as tx:
                    tx.delete_many(*tx.items())
                    if i % 3:
                        tx.abort()
                stack.push(item(i))
                if i % 7 == 0 and name != "flat":
                    runtime.drop(name)

        threads = [threading.Thread(target=write, args=(name, i)) for i, name in enumerate(("flat", "other"))]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                runtime.check()
                assert not fsck(runtime).of("damage")
        finally:
            for thread in threads:
                thread.join()
        runtime.check()
