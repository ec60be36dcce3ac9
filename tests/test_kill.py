"""SIGKILL at random moments: whatever was acknowledged is there, whole, and nothing else."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from kill_writer import TREES, replay, rows

import xtree

WRITER = Path(__file__).with_name("kill_writer.py")


def run_until_killed(path: Path, seed: int, first: int, rng: random.Random, wanted: int) -> int:
    """Starts a writer at step `first` and kills it at a random moment after `wanted` acknowledgements.

    Returns the step after the last acknowledged. With none wanted the moment may be before the first, or in recovery.
    """
    writer = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), str(seed), str(first)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ready\n"        # it is about to open the index
    reports = [writer.stdout.readline() for _ in range(wanted)]
    time.sleep(rng.uniform(0.0, 0.01 if wanted else 0.2))
    writer.kill()
    reports += writer.stdout.readlines()
    killed = writer.wait() < 0 or sys.platform == "win32"
    writer.stdout.close()
    assert killed, "the writer ended by itself: its error is above"
    whole = [report for report in reports if report.endswith("\n")]     # the last may have been cut off
    assert whole == [f"{first + i}\n" for i in range(len(whole))]
    return first + len(whole)


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
        wanted = rng.randrange(1, 40) if number % 3 else 0
        acknowledged = run_until_killed(tmp_path / "index", seed, step, rng, wanted)
        for done in range(step, acknowledged):
            replay(model, seed, done)
        found = contents(tmp_path / "index")
        step = acknowledged
        if found != model:
            replay(model, seed, acknowledged)       # its commit may have returned without being reported
            step = acknowledged + 1
        assert found == model, f"seed {seed}, kill {number}: not the state after {acknowledged} steps, nor the next"
    assert step > rounds // 2


def test_a_kill_during_creation_leaves_a_directory_that_opens(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(5):
        path = tmp_path / str(number)
        acknowledged = run_until_killed(path, seed, 0, rng, 0)
        model = {name: Counter() for name in TREES}
        for done in range(acknowledged):
            replay(model, seed, done)
        after = {name: Counter(counts) for name, counts in model.items()}
        replay(after, seed, acknowledged)
        assert contents(path) in (model, after), f"seed {seed}, kill {number}"
