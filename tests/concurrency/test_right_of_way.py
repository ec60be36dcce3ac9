"""Queries give the GIL to commits, whatever the switch interval, and writers to queries.

Promises (One writer, many readers):

- threads of short queries don't keep the GIL from a commit that comes back from its sync, nor a writer from them:
  all of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import pytest

import xtree
from xtree.persistence.base.right_of_way import waiting

COMMITS = 20
WINDOW = (0.0, 0.0, 9.0, 9.0)
PATIENCE = 30_000_000  # looks


@contextlib.contextmanager
def no_switching():
    """A thread that runs Python keeps the GIL until it gives it away."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Committing(threading.Thread):
    """Commits again and again; `done` says how often it has."""

    def __init__(self, tree):
        super().__init__()
        self.tree, self.done, self.ended = tree, 0, False

    def run(self):
        while not self.ended:
            self.tree.insert(self.done, (self.done % 9, self.done % 7))
            self.done += 1


def until_it_waits():
    """Returns when a thread that commits has come back from a sync, and wants the GIL, which this one keeps."""
    for looks in range(PATIENCE):
        if waiting():
            return
        if looks % 10_000 == 9_999:
            time.sleep(0.0001)  # it may need the GIL for something else
    raise AssertionError("no commit has come back from its sync")


@pytest.fixture(params=["strict", "balanced"])
def committing(request, tmp_path):
    with xtree.open(tmp_path / "index", dims=2, durability=request.param) as tree:
        for i in range(COMMITS):  # the files have grown
            tree.insert(-i, (i % 9, i % 7))
        thread = Committing(tree)
        thread.start()
        try:
            with no_switching():
                yield thread
        finally:
            thread.ended = True
            thread.join()


@pytest.mark.parametrize("ask", ["count", "query", "nearest"])
def test_a_commit_gets_the_gil_between_two_queries(committing, ask):
    here = xtree.XTree(dims=2)
    here.insert(1, (1.0, 1.0))
    question = {"count": lambda: here.count(WINDOW), "query": lambda: here.query(WINDOW)}.get(
        ask, lambda: here.nearest((1.0, 1.0), 1)
    )
    for _ in range(COMMITS):
        before, asked = committing.done, 0
        while committing.done == before:
            until_it_waits()
            question()  # lets it pass, or another thread of the store; then there may be another sync
            asked += 1
            assert asked < 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_in_a_forked_child_nobody_has_the_right_of_way(committing):
    until_it_waits()
    child = os.fork()
    if child == 0:
        os._exit(waiting())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
