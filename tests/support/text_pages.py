"""A structure for tests of the substrate that isn't a tree: each name has one page, whose content is a text."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Callable

from xtree.config import Config
from xtree.errors import CorruptionError
from xtree.persistence.base import crash_points
from xtree.persistence.base.clock import Clock
from xtree.persistence.files import filenames
from xtree.persistence.opening import open_store
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import begin

KIND = 200
SMALL = Config(
    window_bytes=1 << 20,
    data_file_first_bytes=16 << 10,
    max_payload_in_wal=16 << 10,
    bulk_payload_limit=64 << 10,
    checkpoint_log_bytes=256 << 10,
    checkpoint_burst_log_bytes=256 << 10,
    checkpoint_min_interval_s=0.0,
    wal_fill_bytes=32 << 10,
    wal_fill_limit_bytes=64 << 10,
    wal_segment_bytes=128 << 10,
    epoch_stride=100,
    reserve_bytes=0,
)

# Checkpoints only when they are asked for.
NO_CHECKPOINTS = {
    "checkpoint_log_bytes": 1 << 30,
    "checkpoint_burst_log_bytes": 1 << 30,
    "checkpoint_interval_s": 1e8,
    "checkpoint_idle_s": 1e8,
}

ONE_LONG_LOG = {
    "wal_fill_bytes": 4 << 20,
    "wal_fill_limit_bytes": 4 << 20,
    "wal_segment_bytes": 4 << 20,
    "checkpoint_log_bytes": 16 << 20,
}

MODES = ("strict", "balanced", "eventual")

Texts = dict[str, str]


class SteppingClock(Clock):
    """A clock that advances by a step at every look, and never while a thread waits."""

    def __init__(self, step: float) -> None:
        self.time, self.step = 0.0, step

    def now(self):
        self.time += self.step
        return self.time

    def get(self, items, timeout):
        return items.get()


class ManualClock(Clock):
    """A clock that a test moves. Threads that wait look again when something happens, and in `advance`."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self):
        return self.time

    def get(self, items, timeout):
        return items.get() if timeout is None or timeout > 0 or not items.empty() else None

    def wait(self, condition, timeout):
        return condition.wait()

    def advance(self, store, seconds: float) -> None:
        """Moves the clock, and returns when all that is due then was done.

        A leader that was looking at the time just before may answer the first call in the same round.
        """
        self.time += seconds
        store._coordinator._queue.wake()
        store._coordinator.between_groups(lambda: None)
        settle(store)


def small(mode: str, **fields) -> Config:
    """SMALL in another durability mode."""
    return dataclasses.replace(SMALL, durability=mode, **fields)


def by_request(mode: str = "balanced", **fields) -> Config:
    """SMALL with checkpoints on request only."""
    return small(mode, **{**NO_CHECKPOINTS, **fields})


def put(store, texts: dict[str, str | None], size_class: int = 0) -> int:
    """Sets texts, or removes names (None), in one commit."""
    write_set = begin(store)
    changes: dict[str, CatalogEntry | None] = {}
    for name, text in texts.items():
        entry = write_set.base.catalog.get(name)
        if text is None:
            if entry is not None:
                write_set.remove_page(entry.root)
            changes[name] = None
        else:
            content = text.encode().ljust(64, b"\0")
            if entry is None:
                root = write_set.add_page(KIND, size_class, content)
            else:
                root = write_set.replace_page(entry.root, content)
            changes[name] = CatalogEntry(name, "text", root, b"")
    return write_set.commit(changes)


def texts_of(store, published=None) -> Texts:
    """All texts of the published state."""
    published = published or store.published
    return {e.name: store.read_page(e.root)[:64].rstrip(b"\0").decode() for e in published.catalog}


def random_changes(rng: random.Random, step: int) -> dict[str, str | None]:
    """Changes that set a few names, and now and then remove one."""
    names = [f"name-{rng.randrange(12)}" for _ in range(rng.randint(1, 4))]
    return {name: None if rng.random() < 0.15 else f"{name} at {step}" for name in names}


def after(texts: Texts, changes: dict[str, str | None]) -> Texts:
    """The texts after a commit of the changes."""
    merged = {**texts, **changes}
    return {name: text for name, text in merged.items() if text is not None}


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until a thread in the background has made a condition true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def settle(store) -> None:
    """Returns when the threads in the background have done what the commits so far have made due."""
    store._coordinator.between_groups(lambda: None)
    store._coordinator.checkpointer.call(lambda: None)


def write_steps(store, seed: int, first: int, steps: int, acknowledge: Callable[[int], None]) -> None:
    """Commits steps first .. first + steps - 1 of a seeded history; now and then large pages, and a checkpoint.

    After each of them the background settles, so that every run reaches the same crash points.
    """
    for step in range(first, first + steps):
        rng = random.Random(f"{seed}/{step}")
        put(store, random_changes(rng, step), size_class=rng.choice((0, 0, 0, 1, 3)))
        acknowledge(step)
        settle(store)
        if step % 23 == 22:
            store.checkpoint()


def history(seed: int, steps: int) -> list[Texts]:
    """The texts after 0, 1, ... steps commits of write_steps."""
    states: list[Texts] = [{}]
    for step in range(steps):
        states.append(after(states[-1], random_changes(random.Random(f"{seed}/{step}"), step)))
    return states


def run_and_die(
    path: str,
    work: Callable[[object, Callable[[int], None]], None],
    point: str | None,
    nth: int,
    config: Config = SMALL,
    clock: Clock | None = None,
    acknowledged: list[int] | None = None,
) -> tuple[int, bool]:
    """Opens the store at `path` in a child process, and works until a crash point is reached for the n-th time.

    There the process ends at once. If point is None, any point counts. Returns (last acknowledged step or -1, crashed),
    and puts all acknowledged steps into a list, if one is given.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            left = nth

            def hook(name: str) -> None:
                nonlocal left
                if point is None or name == point:
                    left -= 1
                    if left == 0:
                        os._exit(42)

            crash_points.set_hook(hook)
            store = open_store(path, config=config, clock=clock)
            work(store, lambda step: os.write(writer, step.to_bytes(4, "little")))
            store.close()
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, result = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(result)
    assert code in (0, 42), f"the child ended with {code}"
    steps = [int.from_bytes(said[at : at + 4], "little") for at in range(0, len(said), 4)]
    if acknowledged is not None:
        acknowledged += steps
    return steps[-1] if steps else -1, code == 42


def check_after_a_power_loss(checked, store) -> None:
    """check() of a store, or of what holds it. A superblock copy that the power loss has torn may look like damage."""
    superblock = store.index_files.superblock
    try:
        checked.check()
    except CorruptionError as error:
        if superblock.copies_readable > 1 or f"{filenames.SUPERBLOCK}: at offset" not in str(error):
            raise
        superblock.verify = lambda after_crash: None
        try:
            checked.check()
        finally:
            del superblock.verify
