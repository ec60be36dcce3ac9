"""The writer that test_kill.py kills: says that it is ready, then step after step, each reported once it has returned.

    python kill_writer.py DIRECTORY SEED FIRST_STEP

A step is a pure function of (seed, number), so that the test can replay it on a model.
"""

import sys
from collections import Counter

import numpy as np

TREES = {"flat": 2, "deep": 3}          # name: dims
KINDS = ("insert", "insert_many", "delete_many", "both", "update", "bulk", "aborted", "checkpoint")
MODES = ("strict", "balanced", "eventual")
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
    """Does a step to the model: a multiset of (id, box) for each tree."""
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


def main(path: str, seed: int, first: int) -> None:
    import xtree

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with xtree.Runtime(path, durability=MODES[first % len(MODES)]) as runtime:
        for name, dims in TREES.items():
            runtime.tree(name, dims=dims)
        number = first
        while True:
            perform(runtime, seed, number)
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
