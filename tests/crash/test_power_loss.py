"""A power loss at any moment loses no acknowledged commit and leaves no half of one.

Promises (Nothing acknowledged is lost):

- a power loss at any moment, during recovery too, leaves a prefix with every acknowledged commit:
  test_what_a_power_loss_leaves_is_a_prefix_with_every_acknowledged_commit,
  test_a_power_loss_during_recovery_changes_nothing_of_what_is_recovered.
"""

import random
import secrets
import shutil
import sys

import pytest
from support.forgetful_fs import ForgetfulFileSystem, PowerLoss, write_image
from support.power_losses import STEPS, PowerLosses, written_with_losses
from support.text_pages import SMALL, after, check_after_a_power_loss, history, put, texts_of

from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")


def checked(path, expected, trail):
    """Opens what is left, and returns which expected state it holds. Another commit survives as well."""
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


@pytest.mark.slow
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
