"""The process that the demo kills: it commits batch after batch and reports each one once its commit has returned.

python -m xtree.tools.demo_writer DIRECTORY FIRST_BATCH
"""

from __future__ import annotations

import signal
import sys

import numpy as np

import xtree

__all__ = ["BATCH", "batch", "write_forever"]

BATCH = 200


def batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and boxes of a batch: the same for the writer and for those who check what it left behind."""
    rng = np.random.default_rng([2024, number])
    low = rng.random((BATCH, 2))
    return np.arange(number * BATCH, (number + 1) * BATCH), np.hstack([low, low + rng.random((BATCH, 2)) * 0.001])


def write_forever(path: str, first: int) -> None:
    """Commits batches until the process is killed. A number on stdout means: this batch is acknowledged."""
    with xtree.open(path, dims=2) as tree:
        number = first
        while True:
            tree.insert_many(*batch(number))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            number += 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent ends this process
    write_forever(sys.argv[1], int(sys.argv[2]))
