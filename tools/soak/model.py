"""What the trees of a soak hold after any number of steps: a function of the seed, so that any state can be checked.

A history puts batches of records into a tree, moves each to other boxes at half of its lifetime, and removes it in the
end. Its content therefore keeps about the same size, and tells by itself after which step it is seen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["COMETS_KEPT", "History", "SoakError", "comet_batch", "comet_step", "comets_after"]

STRIDE = 4096  # of ids, from one batch to the next
LANE = 1 << 40  # of ids, from one history of a tree to the next
LARGE = 2000  # records of a large batch
COMETS_KEPT = 2

Records = tuple[np.ndarray, np.ndarray]


class SoakError(AssertionError):
    """Raised when an index isn't what the model says."""


class History:
    """One sequence of changes to one tree. Step s of batch k, s = 3 * k + phase: 0 adds it, 1 moves one, 2 removes one.

    keep: how many batches are there after phase 2. The first state is that after step `first`.
    """

    def __init__(self, seed: int, tree: str, lane: int, dims: int, keep: int) -> None:
        self.tree = tree
        self.lane = lane
        self.dims = dims
        self.keep = keep
        self.first = 3 * keep + 2
        self._key = (seed, sum(tree.encode()), lane)
        self.batch = lru_cache(2 * keep)(self._batch)

    def _batch(self, k: int, moved: bool) -> Records:
        """Ids and boxes of a batch, where it was put or where it was moved to."""
        rng = np.random.default_rng([*self._key, k])
        size = LARGE if k % 40 == 0 else 1 if k % 3 == 0 else int(rng.integers(2, 200))
        low = np.random.default_rng([*self._key, k, moved]).random((size, self.dims))
        return self.lane * LANE + k * STRIDE + np.arange(size), np.hstack([low, low + 0.01])

    def acts_on(self, step: int) -> tuple[int, int]:
        """(phase, batch) of a step."""
        k, phase = divmod(step, 3)
        return phase, (k, k - self.keep // 2, k - self.keep)[phase]

    def after(self, step: int) -> Records:
        """All records after a step, by rising id."""
        k, phase = divmod(step, 3)
        oldest = k - self.keep + (phase == 2)
        moved = k - self.keep // 2 - (phase == 0)
        batches = [self.batch(b, b <= moved) for b in range(oldest, k + 1)]
        return np.concatenate([ids for ids, _ in batches]), np.concatenate([boxes for _, boxes in batches])

    def step_of(self, ids: np.ndarray, boxes: np.ndarray) -> int:
        """The step after which records, by rising id, are all of this history. Raises SoakError if there is none."""
        if not len(ids):
            raise SoakError(f"{self.tree}: lane {self.lane} is empty")
        k = (int(ids[-1]) - self.lane * LANE) // STRIDE
        for step in (3 * k, 3 * k + 1, 3 * k + 2):
            expected_ids, expected_boxes = self.after(step)
            if np.array_equal(ids, expected_ids) and np.array_equal(boxes, expected_boxes):
                return step
        expected_ids, _ = self.after(3 * k + 2)
        missing = np.setdiff1d(expected_ids, ids)
        extra = np.setdiff1d(ids, self.after(3 * k)[0])
        raise SoakError(
            f"{self.tree}: lane {self.lane} is in no state around batch {k}: {len(ids)} records, "
            f"{len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}"
        )


def lanes(ids: np.ndarray, boxes: np.ndarray, count: int) -> list[Records]:
    """The records of each history of a tree, by rising id."""
    order = np.argsort(ids, kind="stable")
    ids, boxes = ids[order], boxes[order]
    cuts = np.searchsorted(ids, [lane * LANE for lane in range(1, count)])
    return list(zip(np.split(ids, cuts), np.split(boxes, cuts)))


# Comets: trees that are made, filled and dropped. Step s of comet n, s = 3 * n + phase: 0 makes it, 1 fills it, 2 drops
# the one COMETS_KEPT before.


def comet_batch(n: int) -> Records:
    """The records of a comet."""
    low = np.random.default_rng(n).random((50, 2))
    return np.arange(50) + n * STRIDE, np.hstack([low, low])


def comets_after(step: int) -> dict[int, int]:
    """How many records each comet holds after a step, by number."""
    n, phase = divmod(step, 3)
    alive = range(n - COMETS_KEPT + (phase == 2), n + 1)
    return {i: 0 if i == n and phase == 0 else 50 for i in alive}


def comet_step(found: dict[int, int]) -> int:
    """The step after which there are these comets. Raises SoakError if there is none."""
    newest = max(found, default=0)
    for step in (3 * newest, 3 * newest + 1, 3 * newest + 2):
        if comets_after(step) == found:
            return step
    raise SoakError(f"comets {found} are those of no step")
