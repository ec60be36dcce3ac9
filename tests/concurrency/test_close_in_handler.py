"""close() where it can't wait: in a signal handler that interrupts a call, and in a callback of a call."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import xtree

PROGRAM = """
import os, signal, sys, threading
import numpy as np
import xtree

tree = xtree.open(sys.argv[1], dims=2)
tree.insert(1, (0.0, 0.0, 1.0, 1.0))

def end(*arguments):
    tree.close()
    sys.exit(3)

signal.signal(signal.SIGTERM, end)
boxes = np.random.default_rng(1).random((200_000, 2))
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    tree.insert_many(np.arange(len(boxes)), boxes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_a_handler_that_closes_and_exits_ends_the_process_with_the_index_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "index")], timeout=120, check=False)
    assert done.returncode == 3
    with xtree.open(tmp_path / "index") as tree:
        tree.check()
        assert len(tree) % 200_000 == 1


@pytest.mark.parametrize("durable", [False, True])
def test_a_callback_may_close_the_tree(tmp_path, durable):
    tree = xtree.open(tmp_path / "index", dims=2) if durable else xtree.XTree(dims=2)
    boxes = np.random.default_rng(1).random((50_000, 2))
    with pytest.raises(xtree.ClosedError):
        tree.bulk_load(np.arange(len(boxes)), boxes, progress=lambda done, total: tree.close())
    assert tree.closed
