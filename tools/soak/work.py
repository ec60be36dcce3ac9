"""The work of a soak: threads that write, read and keep snapshots, and compare all that they see with the model.

    python -m xtree.tools.soak.work INDEX SEED KEEP MODE COUNTERS SNAPSHOT_SECONDS

works until it is killed. COUNTERS is a file of one int64 for each writer: the last step whose commit has returned.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

import xtree
from xtree.tools.soak.model import COMETS_KEPT, History, SoakError, comet_batch, comet_step, lanes

__all__ = ["CONFIG", "TREES", "WRITERS", "Model", "Work"]

MIB = 1 << 20
# Small, so that much happens: many files, logs and checkpoints, and transactions on both sides of every limit.
CONFIG: dict[str, Any] = {
    "window_bytes": 16 * MIB,
    "max_payload_in_wal": 8 << 10,
    "bulk_payload_limit": MIB // 2,
    "checkpoint_log_bytes": 8 * MIB,
    "wal_fill_bytes": 64 << 10,
    "wal_fill_limit_bytes": 512 << 10,
    "epoch_stride": 1000,
    "sync_interval_ms": 50,
}
TREES = {"deep": 5, "flat": 2, "left": 2, "right": 3}
WRITERS = ("flat", "flat, too", "deep", "left and right", "comets")
COMETS = len(WRITERS) - 1
PAUSE_S = 0.01  # between two steps of a writer
WINDOW_SIDE = 0.1


@dataclass
class Model:
    """The histories of one seed."""

    seed: int
    keep: int

    def __post_init__(self) -> None:
        def history(tree: str, lane: int = 0) -> History:
            return History(self.seed, tree, lane, TREES[tree], self.keep)

        self.histories = {tree: [history(tree)] for tree in TREES}
        self.histories["flat"].append(history("flat", 1))
        left, right = self.histories["left"][0], self.histories["right"][0]
        self.of_writer = [*([h] for h in self.histories["flat"]), self.histories["deep"], [left, right]]

    def forget(self) -> None:
        """Lets go of what was only kept to save time."""
        for histories in self.histories.values():
            for history in histories:
                history.batch.cache_clear()

    def create(self, runtime: xtree.Runtime) -> None:
        """Puts every tree into its first state."""
        for tree, histories in self.histories.items():
            parts = [history.after(history.first) for history in histories]
            target = runtime.tree(tree, dims=TREES[tree])
            target.bulk_load(np.concatenate([ids for ids, _ in parts]), np.concatenate([boxes for _, boxes in parts]))
        for n in range(COMETS_KEPT):
            runtime.tree(f"comet {n}", dims=2).insert_many(*comet_batch(n))

    def steps_of(self, tree: str, reader: Any) -> list[int]:
        """The step of each history of a tree that the tree or a snapshot of it shows. Raises SoakError."""
        histories = self.histories[tree]
        parts = lanes(*reader.items(), len(histories))
        return [history.step_of(ids, boxes) for history, (ids, boxes) in zip(histories, parts)]

    def steps(self, runtime: xtree.Runtime) -> list[int]:
        """The last step of each writer, while nobody writes. Raises SoakError."""
        of_tree = {tree: self.steps_of(tree, runtime.tree(tree)) for tree in TREES}
        if of_tree["left"] != of_tree["right"]:
            raise SoakError(f"left is after step {of_tree['left']}, right after {of_tree['right']}")
        comets = {int(name.split()[1]): name for name in runtime.trees() if name.startswith("comet")}
        found = comet_step({n: len(runtime.tree(name).items()[0]) for n, name in comets.items()})
        return [*of_tree["flat"], *of_tree["deep"], *of_tree["left"], found]


class Work:
    """Threads at work on an open runtime. acknowledged: one int64 for each writer, its last committed step."""

    def __init__(
        self,
        runtime: xtree.Runtime,
        model: Model,
        acknowledged: np.ndarray,
        longest_snapshot_s: float = 1.0,
    ) -> None:
        self.errors: list[str] = []
        self.counts = {"commits": 0, "checks": 0, "snapshots": 0, "checkpoints": 0}
        self._runtime = runtime
        self._model = model
        self._acknowledged = acknowledged
        self._acknowledged[:] = model.steps(runtime)
        self._longest_snapshot_s = longest_snapshot_s
        self._calm = False  # small changes only: nothing is rebuilt or aborted
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begins."""
        for number in range(COMETS):
            self._spawn(self._write, number)
        self._spawn(self._fly_comets)
        self._spawn(self._keep_snapshots)
        for tree in TREES:
            self._spawn(self._ask, tree)
        self._spawn(self._checkpoint)

    def run(self, seconds: float) -> None:
        """Works for `seconds`, or until something is wrong, and returns when every thread has ended."""
        self.start()
        self._stop.wait(seconds)
        self._finish()

    def turn_over(self, limit_s: float) -> None:
        """Makes one step after another while nobody reads, until every old record has gone, or for `limit_s`.

        Writers that run side by side would leave longer files.
        """
        first = self._acknowledged.copy()
        deadline = monotonic() + limit_s
        rng = random.Random(self._model.seed)
        self._calm = True
        self._spawn(self._checkpoint)
        try:
            while (self._acknowledged - first)[:COMETS].min() < 3 * self._model.keep + 3 and monotonic() < deadline:
                for number in range(COMETS):
                    self._step(number, rng)
                self._step_of_comets()
                if self._stop.is_set():
                    break
        finally:
            self._finish()

    def _finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise SoakError("\n".join(self.errors))

    def wait(self) -> None:
        """Returns only when something is wrong."""
        self._stop.wait()

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        def work() -> None:
            try:
                function(*arguments)
            except BaseException:
                self.errors.append(traceback.format_exc())
                self._stop.set()

        thread = threading.Thread(target=work, name=f"{function.__name__} {arguments}")
        self._threads.append(thread)
        thread.start()

    # Writers.

    def _write(self, number: int) -> None:
        rng = random.Random(f"{self._model.seed} {number}")
        while not self._stop.wait(PAUSE_S * rng.random()):
            self._step(number, rng)

    def _step(self, number: int, rng: random.Random) -> None:
        histories = self._model.of_writer[number]
        step = int(self._acknowledged[number]) + 1
        if not self._calm and rng.random() < 0.05:
            self._abort_one(histories, step)
        if len(histories) == 1:
            tree = self._runtime.tree(histories[0].tree)
            self._change_alone(tree, histories[0], step, rng)
        else:
            with self._runtime.transaction(trees=[history.tree for history in histories]) as tx:
                for history in histories:
                    _change(tx.tree(history.tree), history, step)
        self._acknowledged[number] = step
        self.counts["commits"] += 1

    def _change_alone(self, tree: xtree.XTree, history: History, step: int, rng: random.Random) -> None:
        """One step of one tree: by a call of its own when one call does it, else in a transaction."""
        phase, k = history.acts_on(step)
        ids, _ = history.batch(k, False)
        if (phase != 1 or len(ids) == 1) and rng.random() < 0.7:
            _change(tree, history, step, not self._calm and rng.random() < 0.02, one_call=True)
        else:
            with tree.transaction() as tx:
                _change(tx, history, step)

    def _abort_one(self, histories: list[History], step: int) -> None:
        tree = self._runtime.tree(histories[0].tree)
        with tree.transaction() as tx:
            tx.delete_many(*tx.items())
            tx.insert_many(*histories[0].batch(step // 3 + 1, True))
            tx.abort()

    def _fly_comets(self) -> None:
        rng = random.Random(self._model.seed)
        while not self._stop.wait(PAUSE_S * rng.random()):
            self._step_of_comets()

    def _step_of_comets(self) -> None:
        step = int(self._acknowledged[COMETS]) + 1
        n, phase = divmod(step, 3)
        if phase == 0:
            self._runtime.tree(f"comet {n}", dims=2)
        elif phase == 1:
            self._runtime.tree(f"comet {n}").insert_many(*comet_batch(n))
        else:
            self._runtime.drop(f"comet {n - COMETS_KEPT}")
        self._acknowledged[COMETS] = step
        self.counts["commits"] += 1

    def _checkpoint(self) -> None:
        rng = random.Random(self._model.seed)
        while not self._stop.wait(5 * rng.random()):
            self._runtime.checkpoint()
            self.counts["checkpoints"] += 1

    # Readers.

    def _ask(self, name: str) -> None:
        rng = np.random.default_rng([self._model.seed, len(name)])
        tree = self._runtime.tree(name)
        while not self._stop.wait(0.1 * float(rng.random())):
            with tree.snapshot() as snapshot:
                self._model.steps_of(name, snapshot)
                _compare_answers(snapshot, rng)
            self.counts["checks"] += 1

    def _keep_snapshots(self) -> None:
        rng = random.Random(self._model.seed)
        held: list[tuple[float, str, xtree.Snapshot, list[int]]] = []
        try:
            while not self._stop.wait(0.2):
                if len(held) < 8:
                    name = rng.choice(list(TREES))
                    snapshot = self._runtime.tree(name).snapshot()
                    until = monotonic() + self._longest_snapshot_s * rng.random() ** 4
                    held.append((until, name, snapshot, self._model.steps_of(name, snapshot)))
                    self.counts["snapshots"] += 1
                for entry in [entry for entry in held if entry[0] <= monotonic()]:
                    held.remove(entry)
                    self._look_again(*entry[1:])
        finally:
            for _, name, snapshot, steps in held:
                self._look_again(name, snapshot, steps)

    def _look_again(self, name: str, snapshot: xtree.Snapshot, steps: list[int]) -> None:
        with snapshot:
            found = self._model.steps_of(name, snapshot)
            snapshot.check()
        if found != steps:
            raise SoakError(f"a snapshot of {name} was after steps {steps} and is after {found} now")


def _change(target: Any, history: History, step: int, rebuild: bool = False, one_call: bool = False) -> None:
    """One step, in one call or in several; `target` is a tree or a transaction on it. rebuild: by bulk load."""
    phase, k = history.acts_on(step)
    ids, boxes = history.batch(k, phase == 2)
    few = len(ids) <= 20 and not one_call
    if phase == 0:
        if len(ids) == 1:
            target.insert(int(ids[0]), boxes[0])
        elif few:
            for i, box in zip(ids.tolist(), boxes):
                target.insert(i, box)
        else:
            (target.bulk_load if rebuild else target.insert_many)(ids, boxes)
        return
    if phase == 1:
        moved = history.batch(k, True)[1]
        if few or len(ids) == 1:
            done = sum(target.update(i, old, new) for i, old, new in zip(ids.tolist(), boxes, moved))
        else:
            done = target.delete_many(ids, boxes)
            target.insert_many(ids, moved)
    elif len(ids) == 1:
        done = int(target.delete(int(ids[0]), boxes[0]))
    else:
        done = target.delete_many(ids, boxes)
    if done != len(ids):
        raise SoakError(f"{history.tree}: {len(ids) - done} of the {len(ids)} records of batch {k} were not found")


def _compare_answers(snapshot: xtree.Snapshot, rng: np.random.Generator) -> None:
    """Compares query, count and nearest with a scan of all records."""
    ids, boxes = snapshot.items()
    dims = boxes.shape[1] // 2
    low, high = boxes[:, :dims], boxes[:, dims:]
    corner = rng.random(dims)
    window = np.concatenate([corner, corner + WINDOW_SIDE * dims])
    hits = ((low <= window[dims:]) & (high >= window[:dims])).all(axis=1)
    found = np.sort(snapshot.query(window))
    if not np.array_equal(found, np.sort(ids[hits])) or snapshot.count(window) != hits.sum():
        raise SoakError(f"{snapshot!r}: {len(found)} records in {window}, expected {hits.sum()}")
    gap = np.maximum(np.maximum(low - corner, corner - high), 0.0)
    distances = np.sqrt((gap * gap).sum(axis=1))
    expected = np.lexsort((ids, distances))[:5]
    near, how_far = snapshot.nearest(corner, k=5, return_distance=True)
    if not np.allclose(how_far, distances[expected], rtol=1e-12, atol=0.0):
        raise SoakError(f"{snapshot!r}: nearest to {corner} are {near}, expected {ids[expected]}")


def main(path: str, seed: str, keep: str, mode: str, counters: str, longest_snapshot_s: str) -> None:
    """The process that is killed. It ends by itself only when something is wrong."""
    acknowledged = np.memmap(counters, np.int64, "r+", shape=(len(WRITERS),))
    runtime = xtree.Runtime(Path(path), mode="r+", durability=mode, config=xtree.Config(**CONFIG))
    work = Work(runtime, Model(int(seed), int(keep)), acknowledged, float(longest_snapshot_s))
    work.start()
    print("ready", flush=True)
    work.wait()
    sys.stderr.write("\n".join(work.errors))
    sys.stderr.flush()
    os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
