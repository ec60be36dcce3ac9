"""A power loss at any moment loses no acknowledged commit and leaves no half of one."""

import random
import secrets
import shutil
import sys

import pytest
from pages import SMALL, after, history, put, random_changes, texts_of
from power_loss import ForgetfulFileSystem

from xtree.persistence.crash_points import set_hook
from xtree.persistence.runtime import open_store

STEPS = 45
LOSSES = 60

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads unlinked files through /proc")


@pytest.mark.parametrize("seed", [1, 2, secrets.randbits(32)])
def test_what_a_power_loss_leaves_is_a_prefix_with_every_acknowledged_commit(tmp_path, seed):
    print("seed", seed)
    rng = random.Random(seed)
    fs = ForgetfulFileSystem(tmp_path / "index")
    states = history(seed, STEPS)
    acknowledged = 0
    points = 0
    losses = []

    def lose_power(point):
        nonlocal points
        points += 1
        if rng.random() < LOSSES / 1500:
            target = tmp_path / f"left-{len(losses)}"
            fs.power_loss(target, rng)
            losses.append((target, point, acknowledged))

    set_hook(lose_power)
    try:
        for start in range(0, STEPS, 15):
            store = open_store(fs.directory, config=SMALL, fs=fs)
            for step in range(start, start + 15):
                step_rng = random.Random(f"{seed}/{step}")
                put(store, random_changes(step_rng, step), size_class=step_rng.choice((0, 0, 0, 1, 3)))
                acknowledged = step + 1
                if step % 23 == 22:
                    store.checkpoint()
            assert texts_of(store) == states[acknowledged]
            store.close()
    finally:
        set_hook(None)
    assert losses, points
    for target, point, count in losses:
        store = open_store(target, config=SMALL)
        found = texts_of(store)
        assert found in states[count : count + 2], (target, point, count)
        store.check()
        put(store, {"more": "after"})
        store.close()
        store = open_store(target, mode="r", config=SMALL)
        assert texts_of(store) == after(found, {"more": "after"}), (target, point, count)
        store.close()
        shutil.rmtree(target)
