"""SIGKILL at random moments: whatever was acknowledged is there, whole, and nothing else."""

import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from kill_writer import TREES, replay, rows

import xtree

WRITER = Path(__file__).with_name("kill_writer.py")


def run_until_killed(path: Path, seed: int, first: int, rng: random.Random) -> int:
    """Starts a writer at step `first`, kills it at a random moment; returns the step after the last acknowledged."""
    delay = rng.choice([rng.uniform(0.0, 0.5), rng.uniform(0.3, 1.0)])
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), str(seed), str(first)], stdout=subprocess.PIPE, text=True
    )
    killer = threading.Timer(delay, writer.kill)
    killer.start()
    reports = writer.stdout.read().split("\n")[:-1]     # what follows the last line end is a report cut off
    killed = writer.wait() < 0 or sys.platform == "win32"
    killer.cancel()
    writer.stdout.close()
    assert killed, "the writer ended by itself: its error is above"
    assert reports == [str(first + i) for i in range(len(reports))]
    return first + len(reports)


def contents(path: Path) -> dict[str, Counter]:
    """What a reopened index holds, verified by check(). Before the first commit there are no trees."""
    with xtree.Runtime(path) as runtime:
        found = {}
        for name in TREES:
            tree = runtime.tree(name) if name in runtime.trees() else None
            if tree is not None:
                tree.check()
            found[name] = Counter(rows(*tree.items())) if tree is not None else Counter()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [28, 28], ids=["first directory", "second directory"])
def test_every_acknowledged_commit_survives_sigkill_and_no_half_of_one(tmp_path, rounds):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = {name: Counter() for name in TREES}
    step = 0
    for number in range(rounds):
        acknowledged = run_until_killed(tmp_path / "index", seed, step, rng)
        for done in range(step, acknowledged):
            replay(model, seed, done)
        found = contents(tmp_path / "index")
        step = acknowledged
        if found != model:
            replay(model, seed, acknowledged)       # its commit may have returned without being reported
            step = acknowledged + 1
        assert found == model, f"seed {seed}, kill {number}: not the state after {acknowledged} steps, nor the next"
    assert step > rounds, "the writer got nothing done"


def test_a_kill_during_creation_leaves_a_directory_that_opens(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(5):
        path = tmp_path / str(number)
        acknowledged = run_until_killed(path, seed, 0, rng)
        model = {name: Counter() for name in TREES}
        for done in range(acknowledged):
            replay(model, seed, done)
        after = {name: Counter(counts) for name, counts in model.items()}
        replay(after, seed, acknowledged)
        assert contents(path) in (model, after), f"seed {seed}, kill {number}"
