"""SIGINT sent to a process in the middle of long calls: each would take minutes, and ends.

Promises (Right answers):

- Ctrl-C, sent into calls of a process that would take minutes, ends them:
  all of it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs os.kill with SIGINT")

PROGRAM = """
import os, signal, sys, threading
import numpy as np
import xtree

signal.signal(signal.SIGINT, signal.default_int_handler)
rng = np.random.default_rng(1)


def boxes(n, dims, side):
    low = rng.random((n, dims))
    return np.hstack([low, low + side * rng.random((n, dims))])


def many():
    return xtree.XTree.from_boxes(boxes(20_000, 24, 0.01)), rng.random((200_000, 24))


def large():
    return xtree.XTree.from_boxes(boxes(1_000_000, 2, 0.001)), np.tile((0.0, 0.0, 0.999, 0.999), (3_000_000, 1))


def wide():
    return xtree.XTree.from_boxes(boxes(200_000, 8, 0.9)), None


def empty():
    return xtree.XTree(64), boxes(100_000, 64, 0.2)


CALLS = {  # the tree, and what is asked of it
    "nearest": (many, lambda tree, points: tree.nearest(points, 10)),
    "nearest in threads": (many, lambda tree, points: tree.nearest(points, 10, threads=3)),
    "count": (large, lambda tree, windows: tree.count(windows)),
    "count in threads": (large, lambda tree, windows: tree.count(windows, threads=3)),
    "explain": (large, lambda tree, windows: tree.explain(windows)),
    "join": (wide, lambda tree, nothing: tree.join(tree, "contains")),
    "insert_many": (empty, lambda tree, rows: tree.insert_many(np.arange(len(rows)), rows)),
}
make, call = CALLS[sys.argv[1]]
tree, asked = make()
records, threads = len(tree), threading.active_count()
for after in (0.2, 0.5):
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        call(tree, asked)
        print("it ended by itself")
    except KeyboardInterrupt:
        print("interrupted", threading.active_count() - threads)
tree.check()
assert len(tree) == records
print("sound")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", ["nearest", "nearest in threads", "count", "count in threads", "explain", "join", "insert_many"]
)
def test_ctrl_c_ends_a_call_that_would_take_minutes(call):
    done = subprocess.run([sys.executable, "-c", PROGRAM, call], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines == ["interrupted 0", "interrupted 0", "sound"], done.stdout + done.stderr


JUPYTER = """
import _thread, signal, threading
import numpy as np
import xtree

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is ignored, as for what runs in the background
tree = xtree.XTree.from_boxes(np.random.default_rng(1).random((20_000, 24)), dims=24)
points = np.random.default_rng(2).random((200_000, 24))
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    tree.nearest(points, 10, threads=2)
except KeyboardInterrupt:
    tree.check()
    print("interrupted")
"""


def test_an_interrupt_of_the_main_thread_by_another_one_ends_a_call_too():
    """Notebooks and debuggers may interrupt so, without a signal."""
    done = subprocess.run([sys.executable, "-c", JUPYTER], capture_output=True, text=True, timeout=60)
    assert done.stdout == "interrupted\n", done.stdout + done.stderr
