"""Model-based: random histories of a tree against a plain multiset of records, in memory and on disk.

Promises (Right answers):

- any history of inserts, deletes, updates, transactions, snapshots and reopening agrees with a plain multiset:
  all of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import brute_force

import xtree

# Coordinates from few values make equal boxes, shared edges and flat boxes common; the others spread.
COORDINATES = st.one_of(
    st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, -0.0, 1e300, -1e300])
)
IDS = st.integers(-5, 60)
SEEDS = st.integers(0, 2**32 - 1)


class History(RuleBasedStateMachine):
    """A tree, the records it must hold, and the same for open snapshots and at most one open transaction."""

    dims = 2
    durable = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="xtree-model-"))
        self.tree = self.open()
        self.records: Counter = Counter()
        self.snapshots: list[tuple[xtree.Snapshot, Counter]] = []
        self.transaction: xtree.Transaction | None = None
        self.changed: Counter = Counter()

    def open(self) -> xtree.XTree:
        # Small windows, logs and checkpoints, so that short histories fill them.
        config = xtree.Config(
            window_bytes=1 << 20, checkpoint_log_bytes=256 << 10, wal_fill_bytes=64 << 10, bulk_payload_limit=256 << 10
        )
        return (
            xtree.open(self.directory / "index", dims=self.dims, config=config)
            if self.durable
            else xtree.XTree(self.dims)
        )

    @property
    def writer(self):
        return self.tree if self.transaction is None else self.transaction

    @property
    def held(self) -> Counter:
        return self.records if self.transaction is None else self.changed

    def box(self, data) -> tuple[float, ...]:
        pairs = [sorted((data.draw(COORDINATES), data.draw(COORDINATES))) for _ in range(self.dims)]
        return tuple([least + 0.0 for least, _ in pairs] + [most + 0.0 for _, most in pairs])

    def cloud(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        boxes = brute_force.random_boxes(random, n, self.dims, 0.3) * random.choice([1.0, 100.0])
        if random.random() < 0.3:
            boxes = np.round(boxes, 1)
        return random.integers(0, 1000, n), boxes + 0.0

    def chosen(self, data, n: int) -> list:
        """Some of the records that are there."""
        kept = sorted(self.held.elements())
        return [kept[data.draw(st.integers(0, len(kept) - 1))] for _ in range(n)] if kept else []

    @initialize(seed=SEEDS, n=st.sampled_from([0, 10, 300]))
    def load(self, seed, n) -> None:
        ids, boxes = self.cloud(seed, n)
        self.tree.bulk_load(ids, boxes)
        self.records += brute_force.records(ids, boxes)

    @rule(data=st.data(), id=IDS)
    def insert(self, data, id) -> None:
        box = self.box(data)
        self.writer.insert(id, box)
        self.held[id, box] += 1

    @rule(seed=SEEDS, n=st.sampled_from([2, 30, 200]), packed=st.booleans())
    def insert_many(self, seed, n, packed) -> None:
        ids, boxes = self.cloud(seed, n)
        (self.writer.bulk_load if packed else self.writer.insert_many)(ids, boxes)
        self.held.update(brute_force.records(ids, boxes))

    @rule(data=st.data())
    def delete(self, data) -> None:
        for id, box in self.chosen(data, 1):
            assert self.writer.delete(id, box) is True
            self.held[id, box] -= 1
            if not self.held[id, box]:
                del self.held[id, box]

    @rule(data=st.data(), id=IDS)
    def delete_what_may_be_absent(self, data, id) -> None:
        box = self.box(data)
        assert self.writer.delete(id, box) is (self.held[id, box] > 0)
        self.held.subtract([(id, box)])
        self.drop_zeros()

    @rule(share=st.sampled_from([0.1, 0.7, 1.0]), seed=SEEDS)
    def delete_many(self, share, seed) -> None:
        kept = sorted(self.held.elements())
        random = np.random.default_rng(seed)
        gone = [kept[i] for i in random.permutation(len(kept))[: int(share * len(kept))]]
        ids, boxes = brute_force.arrays([*gone, (10**6, tuple([0.0] * 2 * self.dims))], self.dims)
        assert self.writer.delete_many(ids, boxes) == len(gone)
        self.held.subtract(gone)
        self.drop_zeros()

    @rule(data=st.data())
    def update(self, data) -> None:
        for id, box in self.chosen(data, 1):
            moved = self.box(data)
            assert self.writer.update(id, box, moved) is True
            self.held.subtract([(id, box)])
            self.held[id, moved] += 1
            self.drop_zeros()
            assert self.writer.update(10**7, box, moved) is False

    @precondition(lambda self: self.transaction is None)
    @rule()
    def begin(self) -> None:
        self.transaction = self.tree.transaction().__enter__()
        self.changed = self.records.copy()

    @precondition(lambda self: self.transaction is not None)
    @rule(how=st.sampled_from(["commit", "abort", "exception"]))
    def end(self, how) -> None:
        if how == "commit":
            self.transaction.__exit__(None, None, None)
            self.records = self.changed
        elif how == "abort":
            self.transaction.abort()
        else:
            self.transaction.__exit__(KeyError, KeyError(), None)
        self.transaction = None

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.tree.snapshot(), self.records.copy()))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def forget_snapshot(self, data) -> None:
        snapshot, _ = self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))
        snapshot.close()

    @precondition(lambda self: self.durable)
    @rule(checkpoint=st.booleans())
    def reopen(self, checkpoint) -> None:
        if checkpoint:
            self.tree.runtime.checkpoint()
        self.tree.close()
        self.transaction = None
        self.snapshots.clear()
        self.tree = self.open()

    @rule(data=st.data(), seed=SEEDS)
    def ask(self, data, seed) -> None:
        """Everything that can be asked, of the tree or the transaction and of a snapshot."""
        windows = np.vstack([np.array([self.box(data), self.box(data)]), self.cloud(seed, 6)[1]])
        readers = [(self.writer, self.held), *self.snapshots[-1:]]
        for reader, held in readers:
            ids, boxes = brute_force.arrays(held.elements(), self.dims)
            brute_force.assert_same(reader, ids, boxes, windows)
            for point in windows[:, : self.dims]:
                found, away = reader.nearest(point, k=5, return_distance=True)
                expected = np.sort(brute_force.distances(boxes, point))[:5]
                assert away == pytest.approx(expected, rel=1e-9)
                assert len(found) == len(expected)
            for id, box in list(held)[:3]:
                assert (id, box) in reader and (10**8, box) not in reader

    @invariant()
    def sizes_agree(self) -> None:
        assert len(self.tree) == self.records.total()
        if self.transaction is not None:
            assert len(self.transaction) == self.changed.total()

    def drop_zeros(self) -> None:
        for record in [record for record, copies in self.held.items() if copies <= 0]:
            del self.held[record]

    def teardown(self) -> None:
        try:
            if self.transaction is not None:
                self.transaction.check()
                self.transaction.abort()
            for snapshot, held in self.snapshots:
                assert brute_force.records(*snapshot.items()) == held
                snapshot.check()
            self.tree.check()
            assert brute_force.records(*self.tree.items()) == self.records
        finally:
            self.tree.close()
            shutil.rmtree(self.directory)


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
@pytest.mark.parametrize("dims", [1, 2, 3, 8, 17])
def test_every_history_agrees_with_a_multiset_of_records(dims, durable):
    machine = type("History", (History,), {"dims": dims, "durable": durable})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
