"""The writers that test_kill.py kills: step after step, each acknowledged through a pipe once it has returned.

    python kill_writer.py DESCRIPTOR

This is a server at the other end of that socket. It has imported xtree already, and forks a writer for each order. A
step is a pure function of (seed, number), in a group of threads of (seed, thread, number), so that the test can replay
it on a model.
"""

import json
import os
import socket
import struct
import sys
import threading
from collections import Counter

import numpy as np

TREES = {"flat": 2, "deep": 3}  # name: dims
KINDS = ("insert", "insert_many", "delete_many", "both", "update", "bulk", "aborted", "checkpoint")
THREADS = 8
ORDER = "order"  # of commits in a group of threads: entry i is (thread, number) of the i-th commit that made an entry
ACKNOWLEDGEMENT = struct.Struct("<I")
READY = (1 << 32) - 1
SHARES = (0.2, 0.3, 0.2, 0.12, 0.08, 0.02, 0.04, 0.04)


def records(seed: int, number: int, tree: str) -> tuple[np.ndarray, np.ndarray]:
    """The records that a step puts into a tree: between one and a few hundred."""
    rng = np.random.default_rng([seed, number, TREES[tree]])
    n = 1 if kind(seed, number) in ("insert", "update") else int(rng.integers(2, 300))
    low = rng.random((n, TREES[tree]))
    return np.arange(n) + number * 1000, np.hstack([low, low + rng.random(low.shape) * 0.01])


def kind(seed: int, number: int) -> str:
    """What a step does."""
    return str(np.random.default_rng([seed, number]).choice(KINDS, p=SHARES))


def victim(seed: int, number: int) -> int:
    """The earlier step whose records a deleting step removes, if they are still there."""
    return int(np.random.default_rng([seed, number, 99]).integers(max(0, number - 12), number)) if number else 0


def perform(runtime, seed: int, number: int) -> None:
    """Does a step through the public API: one commit, or none for `aborted` and `checkpoint`."""
    flat, deep = (runtime.tree(name, dims=dims) for name, dims in TREES.items())
    what = kind(seed, number)
    ids, boxes = records(seed, number, "flat")
    if what == "insert":
        flat.insert(int(ids[0]), boxes[0])
    elif what == "insert_many":
        flat.insert_many(ids, boxes)
    elif what == "bulk":
        flat.bulk_load(ids, boxes)
    elif what == "delete_many":
        flat.delete_many(*records(seed, victim(seed, number), "flat"))
    elif what == "update":
        old_ids, old_boxes = records(seed, victim(seed, number), "flat")
        flat.update(int(old_ids[0]), old_boxes[0], boxes[0])
    elif what == "checkpoint":
        runtime.checkpoint()
    else:
        with runtime.transaction(trees=sorted(TREES)) as tx:
            tx.tree("flat").insert_many(ids, boxes)
            tx.tree("deep").insert_many(*records(seed, number, "deep"))
            tx.tree("flat").delete_many(*records(seed, victim(seed, number), "flat"))
            if what == "aborted":
                tx.abort()
    assert deep.dims == TREES["deep"]


def replay(model: dict[str, Counter], seed: int, number: int) -> None:
    """Applies a step to the model: a multiset of (id, box) for each tree."""
    what = kind(seed, number)
    if what in ("insert", "insert_many", "bulk", "both"):
        model["flat"].update(rows(*records(seed, number, "flat")))
    if what == "both":
        model["deep"].update(rows(*records(seed, number, "deep")))
    if what in ("delete_many", "both"):
        model["flat"] -= Counter(rows(*records(seed, victim(seed, number), "flat")))
    if what == "update":
        old_ids, old_boxes = records(seed, victim(seed, number), "flat")
        old = (int(old_ids[0]), *old_boxes[0].tolist())
        if model["flat"][old] > 0:
            model["flat"] -= Counter([old])
            model["flat"].update([(int(old_ids[0]), *records(seed, number, "flat")[1][0].tolist())])


def rows(ids: np.ndarray, boxes: np.ndarray) -> list[tuple]:
    """Records as tuples that can be counted."""
    return [(i, *box) for i, box in zip(ids.tolist(), boxes.tolist(), strict=True)]


def name_of(thread: int) -> str:
    """The tree of one thread of a group."""
    return f"of thread {thread}"


def records_of(seed: int, thread: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The records that a step of one thread of a group puts into its tree."""
    rng = np.random.default_rng([seed, thread, number, THREADS])
    low = rng.random((int(rng.integers(1, 30)), 2))
    return np.arange(len(low)) + number * 1000, np.hstack([low, low + rng.random(low.shape) * 0.01])


def perform_in_group(runtime, seed: int, thread: int, number: int) -> None:
    """Does a step of one thread. Every second one makes an entry in the order of commits, in the same commit."""
    ids, boxes = records_of(seed, thread, number)
    if number % 2:
        runtime.tree(name_of(thread)).insert_many(ids, boxes)
    else:
        with runtime.transaction(trees=[ORDER, name_of(thread)]) as tx:
            tx.tree(name_of(thread)).insert_many(ids, boxes)
            tx.tree(ORDER).insert(len(tx.tree(ORDER)), (thread, number))


def write(order: dict, pipes: list[int]) -> None:
    """Opens the index and takes steps, in a thread for each pipe, until it is killed."""
    import xtree
    from support.text_pages import small

    config = small(order["mode"]) if order["small"] else xtree.Config(durability=order["mode"])
    os.write(pipes[0], ACKNOWLEDGEMENT.pack(READY))
    with xtree.Runtime(order["path"], config=config) as runtime:
        if len(pipes) == 1:
            for name, dims in TREES.items():
                runtime.tree(name, dims=dims)
            go_on(pipes[0], order["first"][0], lambda number: perform(runtime, order["seed"], number))
        for name in (ORDER, *map(name_of, range(len(pipes)))):
            runtime.tree(name, dims=2)
        threads = [
            threading.Thread(
                target=go_on,
                args=(pipe, first, lambda number, t=t: perform_in_group(runtime, order["seed"], t, number)),
            )
            for t, (pipe, first) in enumerate(zip(pipes, order["first"], strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def go_on(pipe: int, first: int, step) -> None:
    """Takes steps without end, and acknowledges each."""
    number = first
    while True:
        step(number)
        os.write(pipe, ACKNOWLEDGEMENT.pack(number))
        number += 1


def serve(orders: socket.socket) -> None:
    """Forks a child that writes for each order. The first answer is its process id, the second how it ended."""
    import xtree  # noqa: F401  so that no child has to

    while True:
        message, pipes, _, _ = socket.recv_fds(orders, 1 << 16, THREADS)
        if not message:
            return
        child = os.fork()
        if child == 0:
            try:
                orders.close()
                write(json.loads(message), pipes)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(1)
        for pipe in pipes:
            os.close(pipe)
        orders.sendall(ACKNOWLEDGEMENT.pack(child))
        _, status = os.waitpid(child, 0)
        orders.sendall(ACKNOWLEDGEMENT.pack(status))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
