"""Calls every public method where garbage collection and signal handlers may call it: in the middle of anything.

    python reentrance.py SCENARIO MODE DIRECTORY [SEED]

test_reentrance.py runs this in a process of its own: if a call waits for its own thread, the process prints the stacks
of its threads and ends. Each call answers or raises TransactionError; what it has changed is there afterwards, whole.
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

import xtree
from support.reentrance_world import BOX, BOXES, CALLS, WINDOWS, World
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.base.lock_ranks import rank_held

PATIENCE_S = 100
SOURCES = str(Path(xtree.__file__).parent)


class Tried:
    """The calls that were tried at each place."""

    def __init__(self, per_place: int, names: list[str]) -> None:
        self.per_place, self.names = per_place, names
        self.following: dict[object, int] = {}
        self.shift = itertools.count(0, 7)

    def next(self, place: object) -> str | None:
        """The next call to try at a place; None if enough were tried there."""
        done = self.following.get(place)
        if done is None:
            done = self.following[place] = 0
            self.names = self.names[7:] + self.names[:7]  # begin with other calls at the next place
        if done >= min(self.per_place, len(self.names)):
            return None
        self.following[place] = done + 1
        return self.names[(done + hash(str(place))) % len(self.names)]


def kind_of_thread() -> str:
    """The kind of the current thread."""
    name = threading.current_thread().name
    return name if name.startswith("xtree-") else "a user's"


busy = threading.local()


@contextlib.contextmanager
def once() -> Iterator[bool]:
    """Yields whether the thread isn't in the middle of such a call already."""
    if getattr(busy, "inside", False):
        yield False
        return
    busy.inside = True
    try:
        yield True
    finally:
        busy.inside = False


class Garbage:
    """Garbage for the collector that calls a method, from __del__ or from a weakref's callback."""

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
    """Runs commits in several threads, transactions, checkpoints, and makes and drops trees."""

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
    """Makes each call at each named point, in the thread that reaches it."""
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
    """Makes some calls before each line of the library, in the thread that runs it."""
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
    # The index's own threads were started before, so they begin to trace by a call that they make themselves.
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
    """Makes garbage whose finalizers and callbacks call methods, and has it collected often, in every thread."""
    rng = random.Random(seed)
    names = list(CALLS)

    def act() -> None:
        with once() as free:
            if free:
                world.call(rng.choice(names))

    left: list[int] = []  # a budget for garbage made at named points: what finalizers do would go on for ever

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
    names[:] = ["XTree.len"]  # for garbage that is left over
    gc.collect()


def by_signals(world: World, seed: int) -> None:
    """Sends signals at random moments, whose handler calls methods."""
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
    """Calls close() at each named point: it returns, and the index is closed cleanly."""
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
    elif scenario != "closing":  # where the calls come is up to chance
        assert world.outcomes["answered outside"]
    print("fine")


if __name__ == "__main__":
    main(*sys.argv[1:])
