"""Readers keep the state they started from while a writer commits beside them, without waiting for each other."""

import threading

import numpy as np

import xtree


def boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    low = rng.random((n, 2))
    return np.hstack([low, low + rng.random((n, 2)) * 0.01])


def main() -> None:
    rng = np.random.default_rng(7)
    tree = xtree.XTree.from_boxes(boxes(rng, 20_000))
    window = (0.4, 0.4, 0.6, 0.6)
    ready = threading.Barrier(4)
    done = threading.Event()
    differences = []

    def read() -> None:
        with tree.snapshot() as snapshot:                       # frozen here
            before = np.sort(snapshot.query(window))
            ready.wait()
            while not done.is_set():
                if not np.array_equal(np.sort(snapshot.query(window)), before):
                    differences.append(len(before))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    ready.wait()
    for number in range(20):
        ids = np.arange(500) + 20_000 + number * 500
        tree.insert_many(ids, boxes(rng, 500))                  # twenty commits, each visible at once
    done.set()
    for reader in readers:
        reader.join()
    print(f"the tree has {len(tree):,} records now; every snapshot answered the same all the time")
    assert not differences
    assert len(tree) == 30_000


if __name__ == "__main__":
    main()
