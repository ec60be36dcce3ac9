"""Snapshots of any age under torture: every answer is that of the snapshot's epoch, for its whole life.

Beside the readers: writers on several trees and on pairs of them, trees dropped and made again, checkpoints,
backups, and a configuration so small that logs rotate, slots are reused and windows recycled all the time.

Promises (One writer, many readers):

- every answer of a snapshot is that of its epoch, for its whole life, beside writers, drops, checkpoints, backups,
  rotation and recycled windows:
  test_every_answer_of_a_snapshot_is_that_of_its_epoch.
"""

from __future__ import annotations

import collections
import shutil
import threading

import numpy as np
import pytest
from support.reader_torture import DIMS, Held, History, WrongAnswerError
from support.text_pages import MODES, eventually

import xtree

pytestmark = pytest.mark.threads

NAMES = ("a", "b", "c")
READERS = 4
BATCHES = 12  # of about 30 records in each tree
HELD = 6  # snapshots that each reader keeps

Tally = collections.Counter


def tiny(mode: str, mappings: int, descriptors: int) -> xtree.Config:
    return xtree.Config(
        durability=mode,
        sync_interval_ms=3,
        window_bytes=1 << 20,
        data_file_first_bytes=16 << 10,
        data_file_bytes=64 << 10,
        mapping_budget=mappings,
        descriptor_budget=descriptors,
        max_payload_in_wal=8 << 10,
        bulk_payload_limit=48 << 10,
        checkpoint_log_bytes=64 << 10,
        checkpoint_burst_log_bytes=64 << 10,
        checkpoint_min_interval_s=0.0,
        wal_fill_bytes=16 << 10,
        wal_fill_limit_bytes=32 << 10,
        wal_segment_bytes=32 << 10,
        wal_rotate_bytes=64 << 10,
        epoch_stride=50,
        shard_rows=200,
        reserve_bytes=0,
        page_bytes=4096,
    )


class Torture:
    """The threads of one run, and what they have tried. The first error ends it."""

    def __init__(self, runtime: xtree.Runtime, seed: int) -> None:
        self.runtime = runtime
        self.seed = seed
        self.histories = {name: History(name) for name in NAMES}
        self.ended = threading.Event()
        self.errors: list[BaseException] = []
        self.tried: Tally[str] = Tally()
        self._adding = threading.Lock()

    def run(self, seconds: float, works) -> None:
        """Runs each of the works over and over in a thread of its own."""
        threads = [threading.Thread(target=self._guarded, args=(i, work)) for i, work in enumerate(works)]
        for thread in threads:
            thread.start()
        self.ended.wait(seconds)
        self.ended.set()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _guarded(self, number: int, work) -> None:
        tried: Tally[str] = Tally()
        try:
            work(np.random.default_rng([self.seed, number]), tried)
        except BaseException as error:
            self.errors.append(error)
            self.ended.set()
        with self._adding:
            self.tried += tried

    # Writers.

    def make(self, history: History) -> None:
        """Makes a tree, and gives it its first version with a record."""
        history.begin_empty()
        tree = self.runtime.tree(history.name, dims=DIMS)
        history.acknowledge()
        sign, _ = history.begin(())
        tree.insert_many(*sign)
        history.acknowledge()

    def write(self, name: str):
        """A writer of one tree, and now and then of the next one in the same commit."""

        def work(random: np.random.Generator, tried: Tally[str]) -> None:
            own, other = self.histories[name], self.histories[NAMES[(NAMES.index(name) + 1) % len(NAMES)]]
            while not self.ended.is_set():
                both = sorted((own, other) if random.random() < 0.2 else (own,), key=lambda history: history.name)
                for history in both:
                    history.lock.acquire()
                try:
                    if len(both) == 1 and random.random() < 0.03:
                        self.runtime.drop(name)
                        self.make(own)
                        tried["trees dropped and made again"] += 1
                    else:
                        self.commit(both, random)
                        tried["commits beside snapshots"] += 1
                finally:
                    for history in both:
                        history.lock.release()

        return work

    def commit(self, histories: list[History], random: np.random.Generator) -> None:
        """Changes some trees in one commit."""
        with self.runtime.transaction([history.name for history in histories]) as tx:
            for history in histories:
                tree = tx.tree(history.name)
                batches = list(history.now)
                sign, before = history.begin(())  # its batches are noted below, before the commit
                gone = [batches.pop(random.integers(len(batches))) for _ in range(len(batches) // BATCHES)]
                if batches and random.random() < 0.3:
                    gone.append(batches.pop(0))
                new = [history.batch(random) for _ in range(random.integers(1, 3))]
                for ids, boxes in [*([before] if before else []), *gone]:
                    assert tree.delete_many(ids, boxes) == len(ids)
                add = tree.bulk_load if random.random() < 0.05 else tree.insert_many
                for ids, boxes in [sign, *new]:
                    add(ids, boxes)
                batches += new
                history.versions[-1] = (sign, *batches)
        for history in histories:
            history.acknowledge()

    # Readers.

    def hold(self, random: np.random.Generator) -> Held | None:
        """A snapshot of some tree; None while it is being dropped."""
        history = self.histories[NAMES[random.integers(len(NAMES))]]
        try:
            return Held(history, self.runtime.tree(history.name))
        except (ValueError, xtree.ClosedError):
            return None

    def read(self, random: np.random.Generator, tried: Tally[str]) -> None:
        """Takes snapshots, keeps some for a moment and some to the end, and asks them."""
        kept: list[Held] = []
        while not self.ended.is_set():
            held = self.hold(random)
            if held is not None:
                held.compare(random, tried)
                kept.append(held)
                tried["snapshots taken"] += 1
            for i in random.integers(max(1, len(kept)), size=3 * bool(kept)):
                kept[i].compare(random, tried)
            while len(kept) > HELD:  # the first ones stay to the end
                kept.pop(random.integers(HELD // 2, len(kept))).snapshot.close()
        for held in kept:
            held.compare(random, tried)
            held.snapshot.check()
            held.snapshot.close()

    # Everything else.

    def checkpoint(self, random: np.random.Generator, tried: Tally[str]) -> None:
        while True:
            self.runtime.checkpoint()
            self.runtime.stats()
            tried["checkpoints asked for"] += 1
            if self.ended.wait(0.02):
                return

    def back_up(self, path):
        """Makes a backup, and checks it."""

        def work(random: np.random.Generator, tried: Tally[str]) -> None:
            while True:
                least = {name: history.acknowledged for name, history in self.histories.items()}
                self.runtime.backup(path)
                most = {name: len(history.versions) - 1 for name, history in self.histories.items()}
                with xtree.Runtime(path, mode="r") as copy:
                    copy.check()
                    for name in copy.trees():
                        held = Held(self.histories[name], copy.tree(name), (least[name], most[name]))
                        for _ in range(5):
                            held.compare(random, tried)
                        held.snapshot.close()
                shutil.rmtree(path)
                tried["backups compared"] += 1
                if self.ended.wait(0.1):
                    return

        return work


def torture(directory, mode: str, seed: int, seconds: float, tally) -> None:
    print(f"seed {seed}, {mode}")
    random = np.random.default_rng(seed)
    config = tiny(mode, int(random.integers(1, 3)), int(random.integers(1, 3)))
    with xtree.Runtime(directory / "index", config=config) as runtime:
        run = Torture(runtime, seed)
        for history in run.histories.values():
            run.make(history)
        writers = [run.write(name) for name in NAMES]
        run.run(seconds, [*writers, *[run.read] * READERS, run.checkpoint, run.back_up(directory / "backup")])
        runtime.checkpoint()  # makes eventual commits durable
        eventually(lambda: runtime.stats()["coordinator"]["reclaim_backlog"] == 0)
        stats = runtime.stats()
        assert stats["windows"]["recycled"] > 0 and stats["windows"]["unmap_failures"] == 0
        assert stats["coordinator"]["reclaimed"] > 0
        assert stats["epochs"]["pins"] == 0
        runtime.check()
    with xtree.Runtime(directory / "index") as runtime:
        for history in run.histories.values():
            held = Held(history, runtime.tree(history.name))
            assert held.version == history.acknowledged == len(history.versions) - 1
            for _ in range(10):
                held.compare(random, run.tried)
    for what, n in run.tried.items():
        tally(what, n)


def seed_of_now() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_answer_of_a_snapshot_is_that_of_its_epoch(tmp_path, mode, tally):
    torture(tmp_path, mode, seed_of_now(), 3.0, tally)


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_every_answer_of_a_snapshot_is_that_of_its_epoch_for_minutes(tmp_path, mode, tally):
    for part in range(4):
        directory = tmp_path / str(part)
        directory.mkdir()
        torture(directory, mode, seed_of_now(), 40.0, tally)
        shutil.rmtree(directory)


def test_pages_that_are_used_again_under_a_snapshot_are_noticed(tmp_path):
    """The torture can fail: a snapshot whose pin is taken away gives wrong answers, or none, and that is reported."""
    tried: Tally[str] = Tally()
    random = np.random.default_rng(1)
    with xtree.Runtime(tmp_path / "index", config=tiny("balanced", 2, 2)) as runtime:
        run = Torture(runtime, 1)
        history = run.histories["a"]
        run.make(history)
        run.commit([history], random)
        held = Held(history, runtime.tree("a"))
        epochs = runtime._store.epochs
        slot = next(slot for slot in range(epochs.stats()["slots"]) if is_pinned(epochs, slot))
        epochs.release(slot)
        with pytest.raises((WrongAnswerError, xtree.CorruptionError)):
            for _ in range(200):
                run.commit([history], random)
                runtime.checkpoint()
                held.compare(random, tried)
        while epochs.pin_epoch() != slot:  # until there is a pin in the slot that the snapshot will give back
            pass
        held.snapshot.close()


def is_pinned(epochs, slot: int) -> bool:
    try:
        return epochs.epoch_of(slot) >= 0
    except ValueError:
        return False
