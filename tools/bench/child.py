"""The processes that `bench substrate` starts: one writes and waits to be killed, one opens and says how it went.

    python -m xtree.tools.bench.child write-commits PATH RECORDS COMMITS
    python -m xtree.tools.bench.child write-log PATH RECORDS BYTES
    python -m xtree.tools.bench.child open PATH

Each prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import xtree
from xtree.tools.bench.commits import boxes_of

__all__ = ["NO_CHECKPOINTS", "WINDOW"]

# Everything that is written stays in the log.
DAY_S = 86400.0
NO_CHECKPOINTS = xtree.Config(
    durability="eventual",
    checkpoint_log_bytes=1 << 40,
    checkpoint_burst_epochs=1 << 40,
    checkpoint_interval_s=DAY_S,
    checkpoint_idle_s=DAY_S,
    log_limit_bytes=1 << 50,
)
WINDOW = (0.4, 0.4, 0.41, 0.41)
BATCH = 200


def hits(boxes: np.ndarray) -> int:
    """How many boxes touch WINDOW, by a look at every one."""
    x0, y0, x1, y1 = WINDOW
    return int(((boxes[:, 0] <= x1) & (boxes[:, 2] >= x0) & (boxes[:, 1] <= y1) & (boxes[:, 3] >= y0)).sum())


def write_commits(path: str, records: int, commits: int) -> None:
    """A tree of so many records, a checkpoint, then so many commits of one insert."""
    runtime, tree, boxes = _loaded(path, records)
    more = boxes_of(2, commits)
    for i, box in enumerate(more):
        tree.insert(records + i, box)
    _say_and_wait(runtime, records + commits, hits(boxes) + hits(more), commits)


def write_log(path: str, records: int, log_bytes: int) -> None:
    """A tree of so many records, a checkpoint, then commits of inserts all over it until the log has `log_bytes`."""
    runtime, tree, boxes = _loaded(path, records)
    found, written = hits(boxes), 0
    while runtime.stats()["coordinator"]["log_bytes_since_checkpoint"] < log_bytes:
        more = boxes_of(records + written, BATCH)
        tree.insert_many(np.arange(BATCH) + records + written, more)
        found += hits(more)
        written += BATCH
    _say_and_wait(runtime, records + written, found, written // BATCH)


def _loaded(path: str, records: int) -> tuple[xtree.Runtime, xtree.XTree, np.ndarray]:
    runtime = xtree.Runtime(path, mode="x", config=NO_CHECKPOINTS)
    tree = runtime.tree("t", dims=2)
    boxes = boxes_of(1, records)
    tree.bulk_load(np.arange(records), boxes)
    runtime.checkpoint()
    return runtime, tree, boxes


def _say_and_wait(runtime: xtree.Runtime, records: int, found: int, commits: int) -> None:
    """Says what was committed, and then does nothing until the process is killed."""
    coordinator = runtime.stats()["coordinator"]
    log_bytes = coordinator["log_bytes_since_checkpoint"]
    said = {"records": records, "hits": found, "commits": commits, "log_bytes": log_bytes}
    print(json.dumps({**said, "checkpoints": coordinator["checkpoints"]}), flush=True)
    sys.stdin.read()


def open_and_ask(path: str) -> None:
    """Opens, asks for a window, says how long both took; then counts everything and closes cleanly."""
    before = _resources(path)
    started = perf_counter()
    runtime = xtree.Runtime(path, mode="r+")
    tree = runtime.tree("t")
    answer = tree.query(WINDOW)
    seconds = perf_counter() - started
    tree.query(boxes_of(5, 1000))
    during = _resources(path)
    said = {"seconds": seconds, "hits": len(answer), "recovery": runtime.stats()["recovery"]}
    said |= {"records": len(tree), "counted": tree.count((-np.inf, -np.inf, np.inf, np.inf))}
    runtime.close()
    print(json.dumps({**said, "before": before, "open": during}), flush=True)


def _resources(path: str) -> dict[str, Any]:
    """Descriptors, mappings of an index's files and all, resident bytes of this process; empty without /proc."""
    if not os.path.isdir("/proc/self/fd"):
        return {}
    with open("/proc/self/maps") as maps, open("/proc/self/statm") as memory:
        mappings = maps.read().splitlines()
        resident = int(memory.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "mappings of files": sum(path in mapping for mapping in mappings),
        "mappings": len(mappings),
        "resident": resident,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent ends this process
    command, where, *numbers = sys.argv[1:]
    commands: dict[str, Callable[..., None]] = {
        "write-commits": write_commits,
        "write-log": write_log,
        "open": open_and_ask,
    }
    commands[command](where, *map(int, numbers))
