"""Queries give the GIL to commits, whatever the switch interval.

Promises (One writer, many readers):

- threads of short queries don't keep the GIL from a commit that comes back from its sync, nor from the threads that it
  wakes:
  all of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import pytest
from support.text_pages import MODES

import xtree

COMMITS = 20
MOST_QUERIES = 200_000  # a commit waits for a few; without the right of way for all
WINDOW = (0.0, 0.0, 9.0, 9.0)


@contextlib.contextmanager
def no_switching():
    """A thread that runs Python keeps the GIL until it gives it away. The files must have grown before."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def committing(tree, first):
    for i in range(first, first + COMMITS):
        tree.insert(i, (i % 9, i % 7))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("writers", [1, 3])
def test_a_commit_gets_the_gil_between_two_queries(tmp_path, mode, writers):
    with xtree.Runtime(tmp_path / "index", durability=mode) as runtime:
        trees = [runtime.tree(f"tree {i}", dims=2) for i in range(writers)]
        for tree in trees:
            committing(tree, 0)
        threads = [threading.Thread(target=committing, args=(tree, COMMITS)) for tree in trees]
        queries = 0
        with no_switching():
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                assert COMMITS <= trees[0].count(WINDOW) <= 2 * COMMITS
                queries += 1
                assert queries < MOST_QUERIES, "the queries have kept the GIL"
        assert [len(tree) for tree in trees] == [2 * COMMITS] * writers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_in_a_forked_child_nobody_has_the_right_of_way(tmp_path):
    here = xtree.XTree(dims=2)
    here.insert(1, (1.0, 1.0))
    with xtree.open(tmp_path / "index", dims=2) as tree:
        committing(tree, 0)
        thread = threading.Thread(target=committing, args=(tree, COMMITS))
        with no_switching():
            thread.start()
            while len(tree) < COMMITS + 2:  # then the thread comes from a sync, now and again
                pass
            child = os.fork()
            if child == 0:
                for _ in range(MOST_QUERIES // 10):
                    here.count(WINDOW)
                os._exit(0)
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
