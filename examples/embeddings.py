"""Somebody with embeddings: vectors in, exact nearest neighbours out; kept on disk, replaced, asked by processes.

Beyond some ten dimensions no tree beats a linear scan of unstructured vectors. What this one gives is exact answers on
vectors that have structure, changes at any time, an index that is there after a crash: docs/results/high-dimensions.md.
"""

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

import xtree

DIMS = 16


def make_vectors(n: int, seed: int) -> np.ndarray:
    """Vectors as models make them: many numbers that depend on a few. float32, as they come."""
    rng = np.random.default_rng(seed)
    free = rng.normal(size=(n, 4))
    return np.tanh(free @ np.random.default_rng(0).normal(size=(4, DIMS))).astype(np.float32)


def nearest_in_worker(tree: xtree.XTree, points: np.ndarray) -> np.ndarray:
    return tree.nearest(points, k=5)[1].reshape(len(points), 5)


def main(path: Path) -> None:
    vectors = make_vectors(20_000, 1)
    asked = make_vectors(50, 2)

    with xtree.XTree.from_points(vectors, path=path) as tree:  # (n, d), ids 0..n-1
        pairs, distances = tree.nearest(asked, k=5, return_distance=True)  # (2, 50 * 5): row of the input, id
        found = pairs[1].reshape(len(asked), 5)
        exact = np.linalg.norm(vectors.astype(float)[None] - asked.astype(float)[:, None], axis=2)
        assert np.array_equal(found, np.argsort(exact, axis=1, kind="stable")[:, :5])
        assert np.allclose(distances.reshape(found.shape), np.take_along_axis(exact, found, axis=1))
        pages = tree.explain_nearest(asked[:1], k=5)["pages"]
        print(f"5 nearest of {len(vectors):,} vectors of {DIMS} numbers: {found[0].tolist()}, from {pages} pages")

        # A document is embedded anew: the old vector goes, the new one comes, in one commit.
        changed = make_vectors(1, 3)[0]
        assert tree.update(17, vectors[17], changed)
        assert tree.nearest(changed)[0] == 17

        # A wrong vector is refused, and nothing changes.
        for wrong in (np.full(DIMS, np.nan), np.zeros(DIMS - 1), np.zeros(DIMS, dtype=complex)):
            try:
                tree.insert(1, wrong)
            except (ValueError, TypeError) as error:
                print(f"{type(error).__name__}: {error}")
        assert len(tree) == len(vectors)

    with xtree.open(path, mode="r") as tree, multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(nearest_in_worker, [(tree, part) for part in np.array_split(asked, 4)])  # sends its path
        print("the same from two processes:", np.concatenate(parts)[0].tolist())
        assert np.array_equal(np.concatenate(parts), nearest_in_worker(tree, asked))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary) / "vectors.xtree")
