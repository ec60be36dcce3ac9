"""SIGKILL at random moments: whatever was acknowledged is there, whole, and nothing else.

Promises (Nothing acknowledged is lost):

- an acknowledged commit survives SIGKILL at any moment; the state is a prefix, no half of a batch, over several trees
  too; so does each of eight threads' that commit in groups:
  test_every_acknowledged_commit_survives_sigkill_and_no_half_of_one; a thousand kills:
  test_every_acknowledged_commit_survives_a_thousand_kills.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import brute_force
from support.kill_writer import (
    ACKNOWLEDGEMENT,
    ORDER,
    READY,
    THREADS,
    TREES,
    name_of,
    records_of,
    replay,
    rows,
)
from support.places import TESTS
from support.text_pages import MODES

import xtree
from xtree.persistence.opening import exists

WRITER = TESTS / "support" / "kill_writer.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Writers:
    """Writers that a server in a process of its own forks, and that are killed here."""

    def __init__(self) -> None:
        self.orders, end = socket.socketpair()
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(WRITER), str(end.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            pass_fds=[end.fileno()],
        )
        end.close()

    def close(self) -> None:
        self.orders.close()
        assert self.server.wait(20) == 0

    def run_until_killed(self, order: dict, rng: random.Random, wanted: int) -> list[int]:
        """Kills a writer at a random moment after its first thread has acknowledged `wanted` steps.

        Returns, for each thread, the step after the last that was acknowledged. With none wanted the moment may be
        before the first, or in recovery.
        """
        first = order["first"]
        pipes = [os.pipe() for _ in first]
        socket.send_fds(self.orders, [json.dumps(order).encode()], [writer for _, writer in pipes])
        for _, writer in pipes:
            os.close(writer)
        child = self.answer()
        assert self.read(pipes[0][0], 1) == [READY]  # it is about to open the index
        steps = [self.read(pipes[0][0], wanted), *([] for _ in first[1:])]
        time.sleep(rng.uniform(0.0, 0.01 if wanted else 0.1))
        os.kill(child, signal.SIGKILL)
        status = self.answer()  # after that all its descriptors are closed
        assert os.WIFSIGNALED(status), "the writer ended by itself: its error is above"
        for thread, (reader, _) in enumerate(pipes):
            steps[thread] += self.read(reader, 1 << 20)
            assert steps[thread] == list(range(first[thread], first[thread] + len(steps[thread])))
            os.close(reader)
        return [begin + len(done) for begin, done in zip(first, steps, strict=True)]

    def answer(self) -> int:
        return int(ACKNOWLEDGEMENT.unpack(self.orders.recv(4, socket.MSG_WAITALL))[0])

    def read(self, pipe: int, n: int) -> list[int]:
        """Reads up to n acknowledgements, fewer at the end. One that was cut off doesn't count."""
        size, data = n * ACKNOWLEDGEMENT.size, b""
        while len(data) < size and (more := os.read(pipe, size - len(data))):
            data += more
        return [step for (step,) in ACKNOWLEDGEMENT.iter_unpack(data[: len(data) // 4 * 4])]


@pytest.fixture(scope="module")
def writers():
    made = Writers()
    yield made
    made.close()


def state_of(path: Path, mode: str, rng: random.Random | None = None) -> tuple[int, dict[str, list[tuple]]]:
    """Epoch and sorted records of each tree of an index opened in a mode; with `rng` it is checked and queried too."""
    with xtree.Runtime(path, mode=mode) as runtime:
        if rng is not None:
            runtime.check()
        found = {}
        for name in runtime.trees():
            tree = runtime.tree(name)
            ids, boxes = tree.items()
            if rng is not None:
                windows = brute_force.random_boxes(np.random.default_rng(rng.randrange(1 << 32)), 2, tree.dims, 0.3)
                brute_force.assert_same(tree, ids, boxes, windows)
            found[name] = sorted(rows(ids, boxes))
        return runtime.stats()["epoch"], found


def recovered(path: Path, rng: random.Random) -> dict[str, Counter]:
    """What a kill has left. The index passes check(), answers right, is the same once reopened, and takes writes."""
    before = state_of(path, "r", rng) if exists(path) else (0, {})  # recovered in memory, with nothing written
    assert state_of(path, "a") == before
    assert state_of(path, "r+", rng) == before
    with xtree.Runtime(path, mode="r+") as runtime:
        runtime.tree("probe", dims=1).insert(1, (1.0,))
        runtime.drop("probe")
    return {name: Counter(records) for name, records in before[1].items()}


def kill_again_and_again(writers, path: Path, seed: int, small: bool, rounds: int, tally) -> None:
    """Kills one writer over and over: the state is that after the last acknowledged step, or after the next one."""
    rng = random.Random(seed)
    model = {name: Counter() for name in TREES}
    step = 0
    for number in range(rounds):
        print(f"seed {seed}, kill {number}, step {step}")
        order = {"path": str(path), "seed": seed, "first": [step], "mode": MODES[number % 3], "small": small}
        (acknowledged,) = writers.run_until_killed(order, rng, rng.randrange(1, 30) if number % 3 else 0)
        for done in range(step, acknowledged):
            replay(model, seed, done)
        found = {name: Counter() for name in TREES} | recovered(path, rng)
        step = acknowledged
        if found != model:
            replay(model, seed, acknowledged)  # its commit may have returned without being reported
            step = acknowledged + 1
        assert found == model, f"not the state after {acknowledged} steps, nor the next"
        tally("kills of a writer")


def kill_groups(writers, path: Path, seed: int, small: bool, rounds: int, tally) -> None:
    """Kills eight writing threads over and over. Each has its acknowledged steps, and all together have a prefix of the
    order of commits."""
    rng = random.Random(seed)
    first = [0] * THREADS
    for number in range(rounds):
        print(f"seed {seed}, kill {number}, steps {first}")
        order = {"path": str(path), "seed": seed, "first": first, "mode": MODES[number % 3], "small": small}
        acknowledged = writers.run_until_killed(order, rng, rng.randrange(1, 12) if number % 3 else 0)
        found = recovered(path, rng)
        entries = sorted(found.pop(ORDER, Counter()).elements())
        assert [place for place, *_ in entries] == list(range(len(entries)))
        for thread in range(THREADS):
            held = found.pop(name_of(thread), Counter())
            steps = {id // 1000 for id, *_ in held}
            first[thread] = len(steps)
            assert steps == set(range(len(steps)))
            assert acknowledged[thread] <= len(steps) <= acknowledged[thread] + 1
            assert held == Counter(row for step in steps for row in rows(*records_of(seed, thread, step)))
            in_order = [int(step) for _, of, step, *_ in entries if of == thread]
            assert in_order == list(range(0, len(steps), 2))
        assert not found
        tally("kills of a group of writers")


WRITING = {"one writer": kill_again_and_again, "eight threads": kill_groups}


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False], ids=["small files", "default"])
@pytest.mark.parametrize("writing", WRITING)
def test_every_acknowledged_commit_survives_sigkill_and_no_half_of_one(writers, tmp_path, tally, writing, small):
    seed = random.SystemRandom().randrange(1 << 32)
    WRITING[writing](writers, tmp_path / "index", seed, small, 12, tally)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("small", [True, False], ids=["small files", "default"])
@pytest.mark.parametrize("writing", WRITING)
def test_every_acknowledged_commit_survives_a_thousand_kills(writers, tmp_path, tally, writing, small):
    for directory in range(10):
        seed = random.SystemRandom().randrange(1 << 32)
        WRITING[writing](writers, tmp_path / str(directory), seed, small, 26, tally)


@pytest.mark.slow
def test_a_kill_during_creation_leaves_a_directory_that_opens(writers, tmp_path, tally):
    seed = random.SystemRandom().randrange(1 << 32)
    for number in range(5):
        kill_again_and_again(writers, tmp_path / str(number), seed + number, True, 1, tally)
