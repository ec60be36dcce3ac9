"""Half a million boxes into an index on disk, with a progress bar; then windows as one batch."""

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

import xtree


def main(n: int = 500_000) -> None:
    rng = np.random.default_rng(3)
    low = rng.random((n, 2))
    boxes = np.hstack([low, low + rng.random((n, 2)) * 0.0005])
    with tempfile.TemporaryDirectory() as folder, xtree.open(Path(folder) / "big.xtree", dims=2) as tree:
        with tqdm(total=n, unit=" boxes", unit_scale=True) as bar:
            tree.bulk_load(np.arange(n), boxes, progress=lambda done, total: bar.update(done - bar.n))
        corners = rng.random((10_000, 2))
        windows = np.hstack([corners, corners + 0.005])
        started = perf_counter()
        offsets, ids = tree.query(windows, output="csr")        # window i found ids[offsets[i]:offsets[i + 1]]
        seconds = perf_counter() - started
        print(f"{len(windows):,} windows found {len(ids):,} boxes in {seconds * 1000:.1f} ms")
        assert len(tree) == n
        assert offsets[-1] == len(ids)


if __name__ == "__main__":
    main()
