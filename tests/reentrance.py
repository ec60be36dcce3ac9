"""Every public method called from where garbage collection and signal handlers may call it: in the middle of anything.

    python reentrance.py SCENARIO MODE DIRECTORY [SEED]

Run by test_reentrance.py in a process of its own: when a call waits for itself, the process says where its threads
stand and ends. Each call answers or raises TransactionError; whatever it has changed is there afterwards, whole.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import os
import random
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from stack_writer import PageStack, StackState
from workloads import TINY

import xtree
from xtree.persistence.crash_points import set_hook
from xtree.persistence.lock_ranks import FREE, rank_held

PATIENCE_S = 100
SOURCES = str(Path(xtree.__file__).parent)
BOX = (0.25, 0.25, 0.5, 0.5)
BOXES = np.random.default_rng(1).random((200, 2))
WINDOWS = np.hstack([BOXES, BOXES + 0.1])

CONFIG = {
    **TINY, "wal_fill_bytes": 64 << 10, "wal_fill_limit_bytes": 64 << 10, "wal_segment_bytes": 64 << 10,
    "wal_rotate_bytes": 48 << 10, "checkpoint_log_bytes": 64 << 10, "checkpoint_burst_log_bytes": 64 << 10,
    "checkpoint_min_interval_s": 0.0, "log_limit_bytes": 4 << 20, "reserve_bytes": 0, "mapping_budget": 2,
    "descriptor_budget": 2, "sync_interval_ms": 2,
}  # fmt: skip


class World:
    """An index with something of every kind, and what was done to it by calls in the middle of others."""

    def __init__(self, directory: str, mode: str) -> None:
        self.directory = directory
        self.numbers = itertools.count(1)
        self.runtime = xtree.Runtime(self.new_path(), durability=mode, config=xtree.Config(**CONFIG))
        self.path = self.runtime.path
        self.tree = self.runtime.tree("worked on", dims=2)
        self.other = self.runtime.tree("other", dims=2)
        self.memory = xtree.XTree(dims=2)
        self.stack = self.runtime.structure("stack", StackState)
        for tree in (self.tree, self.other, self.memory):
            tree.insert_many(np.arange(200), WINDOWS)
        PageStack(self.stack).push(b"first")
        self.snapshot = self.other.snapshot()
        self.tx: xtree.Transaction | None = None
        self.scratch = self.runtime.tree("scratch", dims=2)
        self.inserted: list[int] = []
        self.kept: list[object] = []
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def new_path(self) -> str:
        """A path where nothing is."""
        return os.path.join(self.directory, f"index-{next(self.numbers)}")

    def call(self, name: str) -> str:
        """Calls a method, and notes how it ended."""
        where = rank_held()
        try:
            CALLS[name](self)
            outcome = "answered"
        except xtree.TransactionError:
            outcome = "refused"
        except xtree.ClosedError as error:
            outcome = "closed"
            if self.runtime._store.state == "open":
                self.wrong.append(f"{name} at rank {where}: {error!r}")
        except Exception as error:
            outcome = "wrong"
            self.wrong.append(f"{name} at rank {where}: {error!r}")
        if outcome == "refused" and where == FREE and name in READS:
            self.wrong.append(f"{name} was refused where nothing is held")
        self.outcomes[f"{outcome} {'inside' if where != FREE else 'outside'}"] += 1
        return outcome

    def insert(self) -> None:
        """One record more."""
        self.other.insert(1000, BOX)
        self.inserted.append(1)

    def end(self) -> None:
        """Everything is whole, here and after the next open."""
        set_hook(None)
        self.snapshot.close()
        self.kept.clear()
        self.runtime.check()
        expected = 200 + len(self.inserted)
        assert len(self.other) == expected, (len(self.other), expected)
        assert self.runtime.stats()["object_table"]["reserved"] == 0
        self.runtime.close()
        with xtree.Runtime(self.path) as runtime:
            assert runtime.stats()["recovery"]["clean"]
            assert len(runtime.tree("other")) == expected
            runtime.check()


def in_transaction(world: World) -> None:
    with world.other.transaction(timeout=60) as tx:
        tx.insert(1000, BOX)
    world.inserted.append(1)


def over_several(world: World) -> None:
    name = f"made {next(world.numbers)}"
    with world.runtime.transaction(trees=["other"]) as tx:
        tx.make(name, dims=2).insert(1, BOX)
        tx.tree("other").insert(1000, BOX)
        tx.structure("stack").read(lambda store, state: state.count)
    world.inserted.append(1)
    world.runtime.drop(name)


def abandoned(world: World) -> None:
    """A transaction that nobody ends: garbage collection does."""
    tx = world.other.transaction()
    tx.__enter__()
    tx.insert(5, BOX)
    del tx


def change(world: World) -> None:
    world.scratch.insert(1, BOX)
    world.scratch.update(1, BOX, (0, 0, 1, 1))
    world.scratch.delete(1, (0, 0, 1, 1))
    world.scratch.delete_many([1], [BOX])


def back_up(world: World) -> None:
    with contextlib.suppress(ValueError):  # a tree of a Runtime has its own
        world.other.backup(world.new_path())
    world.runtime.backup(world.new_path())


def make_and_drop(world: World) -> None:
    name = f"made {next(world.numbers)}"
    world.runtime.tree(name, dims=3)
    world.runtime.drop(name)


def close_handle(world: World) -> None:
    name = f"made {next(world.numbers)}"
    tree = world.runtime.tree(name, dims=3)
    tree.close()
    world.runtime.drop(name)


def open_another(world: World) -> None:
    with xtree.open(world.new_path(), dims=2) as tree:
        tree.insert(1, BOX)


def own_transaction(world: World, do: Callable[[xtree.Transaction], object]) -> None:
    tx = world.tx
    if tx is not None:
        do(tx)


def close_snapshot(world: World) -> None:
    with world.other.snapshot() as snapshot:
        snapshot.count(BOX)


READS: dict[str, Callable[[World], object]] = {
    "Runtime.path": lambda w: w.runtime.path,
    "Runtime.closed": lambda w: w.runtime.closed,
    "Runtime.trees": lambda w: w.runtime.trees(),
    "Runtime.tree": lambda w: w.runtime.tree("other").count(BOX),
    "Runtime.structures": lambda w: w.runtime.structures(),
    "Runtime.structure": lambda w: w.runtime.structure("stack", StackState),
    "Runtime.stats": lambda w: w.runtime.stats(),
    "Runtime.check": lambda w: w.runtime.check(),
    "repr(Runtime)": lambda w: (repr(w.runtime), w.runtime._repr_html_()),
    "StructureHandle.read": lambda w: w.stack.read(lambda store, state: list(state.pages(store))),
    "StructureHandle.name": lambda w: (w.stack.name, repr(w.stack)),
    "Snapshot.close": close_snapshot,
    "Snapshot.epoch": lambda w: w.snapshot.epoch,
    "XTree.snapshot": lambda w: w.kept.append(w.other.snapshot()) if len(w.kept) < 50 else w.kept.clear(),
}
for of, find in {
    "XTree": lambda w: w.other, "Snapshot": lambda w: w.snapshot, "XTree in memory": lambda w: w.memory,
}.items():  # fmt: skip
    READS |= {
        f"{of}.{name}": (lambda w, find=find, do=do: do(find(w)))
        for name, do in {
            "query": lambda tree: (tree.query(BOX), tree.query(WINDOWS, output="csr")),
            "query in threads": lambda tree: tree.query(WINDOWS, threads=2),
            "count": lambda tree: (tree.count(BOX), tree.count(WINDOWS, threads=2)),
            "nearest": lambda tree: (tree.nearest(BOX[:2], k=3), tree.nearest(BOXES, k=2, threads=2)),
            "explain": lambda tree: tree.explain(WINDOWS[:3]),
            "explain_nearest": lambda tree: tree.explain_nearest(BOXES[:3]),
            "join": lambda tree: tree.join(tree),
            "items": lambda tree: tree.items(),
            "len": lambda tree: len(tree),
            "contains": lambda tree: (3, WINDOWS[3]) in tree,
            "bounds": lambda tree: tree.bounds,
            "dims": lambda tree: tree.dims,
            "height": lambda tree: tree.height,
            "check": lambda tree: tree.check(),
            "stats": lambda tree: tree.stats(),
            "repr": lambda tree: (repr(tree), tree._repr_html_()),
        }.items()
    }
READS |= {
    "XTree.epoch": lambda w: w.other.epoch,
    "XTree.name": lambda w: w.other.name,
    "XTree.runtime": lambda w: w.other.runtime,
    "XTree.closed": lambda w: w.other.closed,
}
CALLS: dict[str, Callable[[World], object]] = {
    **READS,
    "XTree.insert": World.insert,
    "XTree.insert_many": lambda w: (w.other.insert_many([1000], [BOX]), w.inserted.append(1)),
    "XTree.delete, delete_many, update": change,
    "XTree.bulk_load": lambda w: w.memory.bulk_load([1, 2], WINDOWS[:2]),
    "XTree.insert in memory": lambda w: w.memory.insert(1, BOX),
    "XTree.transaction": in_transaction,
    "XTree.transaction, forgotten": abandoned,
    "XTree.close": close_handle,
    "XTree.backup": back_up,
    "Transaction.insert": lambda w: own_transaction(w, lambda tx: tx.insert(5, BOX)),
    "Transaction.query": lambda w: own_transaction(w, lambda tx: tx.query(BOX)),
    "Transaction.status": lambda w: own_transaction(w, lambda tx: (tx.status, repr(tx))),
    "Transaction.abort": lambda w: own_transaction(w, lambda tx: tx.abort()),
    "Runtime.transaction": over_several,
    "Runtime.tree, made": make_and_drop,
    "Runtime.drop": make_and_drop,
    "Runtime.checkpoint": lambda w: w.runtime.checkpoint(),
    "Runtime.backup": lambda w: w.runtime.backup(w.new_path()),
    "StructureHandle.write": lambda w: (PageStack(w.stack).push(b"more"), PageStack(w.stack).pop()),
    "open": open_another,
    "XTree": lambda w: xtree.XTree(dims=2).insert(1, BOX),
    "XTree.from_boxes": lambda w: xtree.XTree.from_boxes(WINDOWS, threads=2),
    "XTree.from_points": lambda w: xtree.XTree.from_points(WINDOWS[:, :2]),
}


class Tried:
    """Which calls were tried where."""

    def __init__(self, per_place: int, names: list[str]) -> None:
        self.per_place, self.names = per_place, names
        self.following: dict[object, int] = {}
        self.shift = itertools.count(0, 7)

    def next(self, place: object) -> str | None:
        """A call to try at a place; None when enough were tried there."""
        done = self.following.get(place)
        if done is None:
            done = self.following[place] = 0
            self.names = self.names[7:] + self.names[:7]  # other ones elsewhere
        if done >= min(self.per_place, len(self.names)):
            return None
        self.following[place] = done + 1
        return self.names[(done + hash(str(place))) % len(self.names)]


def kind_of_thread() -> str:
    """Whose thread this is."""
    name = threading.current_thread().name
    return name if name.startswith("xtree-") else "a user's"


busy = threading.local()


@contextlib.contextmanager
def once() -> Iterator[bool]:
    """Whether the thread isn't in the middle of such a call already."""
    if getattr(busy, "inside", False):
        yield False
        return
    busy.inside = True
    try:
        yield True
    finally:
        busy.inside = False


class Garbage:
    """What the collector finds: it calls a method, from __del__ or from a weakref's callback."""

    def __init__(self, act: Callable[[], object], by_callback: bool) -> None:
        self.itself = self
        self.act = None if by_callback else act
        if by_callback:
            key = id(self)
            references[key] = weakref.ref(self, lambda reference: (references.pop(key, None), act()))

    def __del__(self) -> None:
        if self.act is not None:
            self.act()


references: dict[int, object] = {}


def work(world: World, rounds: int, threads: int = 3, litter: Callable[[], object] = lambda: None) -> None:
    """Commits of several threads, transactions, checkpoints, trees that come and go."""

    def commits(number: int) -> None:
        for i in range(rounds):
            litter()
            with contextlib.suppress(xtree.TransactionError, xtree.ClosedError):
                tree = world.runtime.tree(f"of thread {number}", dims=2)
                tree.insert_many(np.arange(20), BOXES[:20] + i)
                tree.query(WINDOWS)

    others = [threading.Thread(target=commits, args=(i,), daemon=True) for i in range(threads - 1)]
    for thread in others:
        thread.start()
    for i in range(rounds):
        litter()
        with contextlib.suppress(xtree.TransactionError, xtree.ClosedError):
            world.tree.insert(i, (i, i))
        with contextlib.suppress(xtree.TransactionError, xtree.ClosedError), world.tree.transaction() as world.tx:
            world.tx.insert_many(np.arange(50), BOXES[:50] + i)
            world.tx.query(BOX)
        world.tx = None
        with contextlib.suppress(xtree.TransactionError, xtree.ClosedError):
            world.memory.insert(i, BOX)
        with contextlib.suppress(xtree.TransactionError, xtree.ClosedError, KeyError):
            if i % 5 == 0:
                world.runtime.tree("comes and goes", dims=2).bulk_load(np.arange(400), np.tile(BOXES, (2, 1)))
                world.runtime.drop("comes and goes")
            if i % 7 == 0:
                world.runtime.checkpoint()
    for thread in others:
        thread.join()


def at_points(world: World, seed: int) -> None:
    """Each call at each named point, in the thread that stands there."""
    tried = Tried(1000, list(CALLS))

    def hook(point: str) -> None:
        with once() as free:
            name = tried.next((point, rank_held(), kind_of_thread())) if free else None
            if name is not None:
                world.call(name)

    set_hook(hook)
    for _ in range(int(os.environ.get("XTREE_ROUNDS", "10"))):
        work(world, 12)
    set_hook(None)
    print("points:", sorted((*place, done) for place, done in tried.following.items()))


def at_lines(world: World, seed: int) -> None:
    """Some calls before each line of ours that is run, in the thread that runs it."""
    tried = Tried(int(os.environ.get("XTREE_CALLS_A_LINE", "3")), list(CALLS))

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            with once() as free:
                name = tried.next((frame.f_code.co_filename, frame.f_lineno, rank_held())) if free else None
                if name is not None:
                    world.call(name)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    # The index's own threads were started before; they begin to trace with a call of theirs.
    coordinator = world.runtime._store._coordinator
    coordinator.between_groups(lambda: sys.settrace(trace))
    coordinator.checkpointer.call(lambda: sys.settrace(trace))
    for thread_id, frame in sys._current_frames().items():
        if thread_id != threading.get_ident():
            while frame is not None:
                frame.f_trace = trace if frame.f_code.co_filename.startswith(SOURCES) else None
                frame = frame.f_back
    work(world, int(os.environ.get("XTREE_ROUNDS", "60")))
    sys.settrace(None)
    threading.settrace(None)
    coordinator.between_groups(lambda: sys.settrace(None))
    coordinator.checkpointer.call(lambda: sys.settrace(None))
    print("lines:", len(tried.following))


def by_collector(world: World, seed: int) -> None:
    """Garbage whose finalizers and callbacks call methods, collected as often as possible, in every thread."""
    rng = random.Random(seed)
    names = list(CALLS)

    def act() -> None:
        with once() as free:
            if free:
                world.call(rng.choice(names))

    left: list[int] = []  # to be dropped in the middle of something; else what finalizers do would go on for ever

    def litter() -> None:
        left.extend([1, 1])
        Garbage(act, rng.random() < 0.5)

    def hook(point: str) -> None:
        with contextlib.suppress(IndexError):
            left.pop()
            Garbage(act, rng.random() < 0.5)

    before = gc.get_threshold()
    set_hook(hook)
    gc.set_threshold(1, 5, 5)
    try:
        work(world, 60, litter=litter)
    finally:
        gc.set_threshold(*before)
        set_hook(None)
    names[:] = ["XTree.len"]  # those that are left over
    gc.collect()


def by_signals(world: World, seed: int) -> None:
    """Signals at random moments, whose handler calls methods."""
    rng = random.Random(seed)
    names = list(CALLS)

    def handle(number, frame) -> None:
        with once() as free:
            if free:
                world.call(rng.choice(names))
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    work(world, 150)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def closing(world: World, seed: int) -> None:
    """close() at each named point: it returns, and the index is closed cleanly."""
    mode = world.runtime._store.config.durability
    world.end()
    points: dict[str, int] = {}

    def run(point: str | None) -> None:
        world = World(world_directory, mode)

        def hook(name: str) -> None:
            points.setdefault(name, 0)
            if name == point:
                points[name] += 1
                set_hook(None)
                world.runtime.close()

        set_hook(hook)
        with contextlib.suppress(xtree.ClosedError, xtree.TransactionError):
            work(world, 8)
        set_hook(None)
        world.runtime.close()
        with xtree.Runtime(world.path) as runtime:
            assert runtime.stats()["recovery"]["clean"], point
            runtime.check()

    world_directory = world.directory
    run(None)
    for point in list(points):
        run(point)
    print("points:", points)


SCENARIOS = {
    "points": at_points, "lines": at_lines, "collector": by_collector, "signals": by_signals, "closing": closing,
}  # fmt: skip


def main(scenario: str, mode: str, directory: str, seed: str = "0") -> None:
    faulthandler.dump_traceback_later(float(os.environ.get("XTREE_PATIENCE_S", PATIENCE_S)), exit=True)
    world = World(directory, mode)
    SCENARIOS[scenario](world, int(seed))
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    print(dict(world.outcomes))
    assert not world.wrong, Counter(world.wrong).most_common(12)
    if scenario != "closing":
        world.end()
    if scenario in ("points", "lines"):
        assert world.outcomes["answered inside"] and world.outcomes["refused inside"]
    elif scenario != "closing":  # chance decides where they are
        assert world.outcomes["answered outside"]
    print("fine")


if __name__ == "__main__":
    main(*sys.argv[1:])
