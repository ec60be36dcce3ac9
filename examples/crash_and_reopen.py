"""A process is killed in the middle of its commits; what it had been told was committed is there afterwards."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import xtree

BATCH = 100


def write(path: str) -> None:
    """Commits batches until it is killed. A line on stdout says: this batch is committed."""
    with xtree.open(path, dims=2) as tree:
        number = 0
        while True:
            corners = np.random.default_rng(number).random((BATCH, 2))
            tree.insert_many(np.arange(BATCH) + number * BATCH, np.hstack([corners, corners + 0.01]))
            print(number, flush=True)
            number += 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "crash.xtree")
        with subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True) as writer:
            reports = [writer.stdout.readline() for _ in range(50)]
            writer.kill()                                       # SIGKILL: no handler runs, nothing is closed
            reports += writer.stdout.readlines()
        committed = int(reports[-1]) + 1
        with xtree.open(path) as tree:
            tree.check()
            found = len(tree) // BATCH
            print(f"{committed} batches were reported as committed, {found} are there after the kill")
            assert len(tree) % BATCH == 0, "no half of a batch"
            assert found in (committed, committed + 1), "the last one may not have been reported in time"


if __name__ == "__main__":
    write(sys.argv[1]) if len(sys.argv) > 1 else main()
