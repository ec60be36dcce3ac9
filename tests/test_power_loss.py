"""A power loss at any moment loses no acknowledged commit and leaves no half of one."""

import random
import secrets
import shutil
import sys

import pytest
from faults import ForgetfulFileSystem, PowerLoss, write_image
from pages import SMALL, after, check_after_a_power_loss, history, put, random_changes, texts_of

from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store

STEPS = 45

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")


class PowerLosses:
    """Now and then, at a crash point, keeps what a power loss would leave, and what had been promised by then."""

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
    """Commits the history in three sessions, each closed cleanly; what power losses would have left on the way."""
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


def checked(path, expected, trail):
    """Opens what is left, and says which of the expected states it holds; another commit survives as well."""
    store = open_store(path, config=SMALL)
    found = texts_of(store)
    assert found in expected, trail
    check_after_a_power_loss(store, store)
    put(store, {"more": "after"})
    store.close()
    store = open_store(path, mode="r", config=SMALL)
    assert texts_of(store) == after(found, {"more": "after"}), trail
    store.check()
    store.close()
    shutil.rmtree(path)
    return found


@pytest.mark.parametrize("seed", [1, 2, secrets.randbits(32)], ids=["one", "two", "random"])
def test_what_a_power_loss_leaves_is_a_prefix_with_every_acknowledged_commit(tmp_path, seed):
    print("seed", seed)
    states = history(seed, STEPS)
    left = written_with_losses(tmp_path / "index", seed, states)
    assert len(left) > 5
    for path, point, promised in left:
        checked(path, states[promised : promised + 2], (path, point, promised))


@pytest.mark.parametrize("seed", [3, secrets.randbits(32)], ids=["three", "random"])
def test_a_power_loss_during_recovery_changes_nothing_of_what_is_recovered(tmp_path, seed):
    print("seed", seed)
    states = history(seed, STEPS)
    for path, point, promised in written_with_losses(tmp_path / "index", seed, states):
        again = PowerLosses(ForgetfulFileSystem(path), random.Random(seed), path, 0.1)
        set_hook(again)
        try:
            store = open_store(path, config=SMALL, fs=again.fs)
            found = texts_of(store)
            store.close()
        finally:
            set_hook(None)
        assert found in states[promised : promised + 2], (path, point)
        for other, second_point, _ in again.left:
            checked(other, [found], (path, point, other, second_point))
        shutil.rmtree(path)


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty directory"])
def test_a_kill_while_an_index_is_made_and_a_power_loss_after_a_commit_lose_nothing(tmp_path, there):
    root = tmp_path / "root"
    root.mkdir()
    if there:
        (root / "index").mkdir()
    fs = ForgetfulFileSystem(root)
    states = {}
    fs.observe = lambda what: states.setdefault(what, fs.state())
    open_store(root / "index", config=SMALL, fs=fs).close()
    assert len(states) > 8
    for what, state in states.items():
        again = ForgetfulFileSystem.after_kill(state, tmp_path / "again")
        store = open_store(tmp_path / "again" / "index", config=SMALL, fs=again)
        put(store, {"a": "1"})
        for seed in range(12):
            write_image(again.state().after(PowerLoss(seed, 512)), tmp_path / "left")
            assert checked(tmp_path / "left" / "index", [{"a": "1"}], what)
            (tmp_path / "left").rmdir()
        store.close()
        shutil.rmtree(tmp_path / "again")
