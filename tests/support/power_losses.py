"""A history of commits, and what power losses at random moments would have left of it."""

import random

from support.forgetful_fs import ForgetfulFileSystem
from support.text_pages import SMALL, put, random_changes, texts_of
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store

STEPS = 45


class PowerLosses:
    """Keeps, at some crash points, what a power loss would leave, and what had been promised by then."""

    def __init__(self, fs, rng, where, share):
        self.fs, self.rng, self.where, self.share = fs, rng, where, share
        self.promised = 0
        self.left = []

    def __call__(self, point):
        with self.fs.busy:
            if self.rng.random() < self.share:
                target = self.where.with_name(f"{self.where.name}-{len(self.left)}")
                promised = self.promised
                self.fs.power_loss(target, self.rng)
                self.left.append((target, point, promised))


def written_with_losses(path, seed, states):
    """Commits the history in three sessions, each closed cleanly. Returns what power losses would have left."""
    losses = PowerLosses(ForgetfulFileSystem(path), random.Random(seed), path, 0.04)
    set_hook(losses)
    try:
        for start in range(0, STEPS, STEPS // 3):
            store = open_store(path, config=SMALL, fs=losses.fs)
            for step in range(start, start + STEPS // 3):
                rng = random.Random(f"{seed}/{step}")
                put(store, random_changes(rng, step), size_class=rng.choice((0, 0, 0, 1, 3)))
                losses.promised = step + 1
                if step % 23 == 22:
                    store.checkpoint()
            assert texts_of(store) == states[losses.promised]
            store.close()
    finally:
        set_hook(None)
    return losses.left
