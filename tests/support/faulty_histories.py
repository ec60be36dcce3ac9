"""Histories (short_histories.py) in which something fails, and what must hold during them and afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import xtree
from support import brute_force
from support.faulty_fs import SHORT, FaultyFileSystem
from support.short_histories import Contents, Model, Script, Step, after, change, take
from support.text_pages import SteppingClock, settle, small
from xtree.errors import StoreFailedError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import open_store

KINDS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EINTR": errno.EINTR, "short": SHORT}
NO_MEMORY = "no memory"
FAILURES = (OSError, MemoryError)
BEHIND_COMMITS = ("sync.", "wal.", "superblock.")  # points of the background sync, for which nobody waits
LASTING = ("once", "for a while", "for good")  # for a while: until the step that fails first has ended


@dataclass(frozen=True)
class Fault:
    """What fails: call number `nth` of the file system, or with NO_MEMORY named point number `nth`; 0: nothing."""

    nth: int = 0
    kind: str = "EIO"
    lasting: str = "once"

    def hits(self, n: int) -> bool:
        """Whether call or point number n is to fail."""
        return n == self.nth or (0 < self.nth < n and self.lasting != "once")


class WatchedFileSystem(FaultyFileSystem):
    """Fails, and knows which failures must poison: those of a sync, and those between the first byte of a group's
    frame and its publication."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(reading=True)
        self.fault = fault
        self.points = 0
        self.healed = False
        if fault.kind != NO_MEMORY and fault.nth:
            self.fail_nth(fault.nth, KINDS[fault.kind], fault.lasting != "once")
        self.failures: list[str] = []
        self.poisoning: list[str] = []
        self.may_poison = False
        self.appended = False  # a frame was begun since this was last set to False
        self.calls_of_steps = 0
        self._inside: set[int] = set()  # threads that are between the frame's first byte and its publication

    def reached(self, name: str) -> None:
        """The hook for crash points."""
        if name == "commit.before_append":
            self.appended = True
            self._inside.add(threading.get_ident())
        elif name in ("commit.prepared", "commit.published"):
            self._inside.discard(threading.get_ident())
        if not self.healed:
            self.points += 1
            if self.fault.kind == NO_MEMORY and self.fault.hits(self.points):
                self.failing("point", name)
                raise MemoryError(name)

    def heal(self) -> None:
        super().heal()
        self.healed = True

    def failing(self, call: str, path: str) -> None:
        what = f"{call} {os.path.basename(path)}"
        self.failures.append(what)
        if call == "sync" or threading.get_ident() in self._inside:
            self.poisoning.append(what)
        elif call == "point" and path.startswith(BEHIND_COMMITS) and threading.current_thread().name == "xtree-leader":
            self.may_poison = True

    @contextlib.contextmanager
    def healthy(self) -> Iterator[None]:
        """A block in which nothing fails and nothing is counted."""
        kept = self.judge, self.calls, self.healed
        self.heal()
        try:
            yield
        finally:
            self.judge, self.calls, self.healed = kept


class Attempt:
    """One history in which calls fail, and what must hold during it and afterwards."""

    def __init__(self, script: Script, path: Path, mode: str, fs: WatchedFileSystem) -> None:
        self.script = script
        self.path = path
        self.fs = fs
        self.lasting = fs.fault.lasting
        self.config = small(mode, **script.config)
        self.model = Model(after(script.before))
        self.possible = [self.model.contents()]  # what may be there after reopening
        self.snapshots: dict[str, tuple[xtree.Snapshot, Counter]] = {}
        self.told: list[BaseException] = []  # of failures in the background
        self.in_doubt = False  # a commit's outcome isn't known, and its pages are nobody's
        self.threads = own_threads()

    def run(self) -> None:
        """Opens, takes the steps, closes, and looks at what is there then."""
        try:
            runtime = self.open()
        except FAILURES as error:
            self.require_documented(error)
        else:
            try:
                self.take_steps(runtime)
            finally:
                self.close(runtime)
        self.fs.heal()
        self.require_nothing_left()
        self.require_reopened()

    def open(self, mode: str = "a") -> xtree.Runtime:
        with pytest.MonkeyPatch.context() as patch:
            clock = SteppingClock(0.02)
            patch.setattr(
                "xtree.persistence.sharing.open_store",
                lambda path, **given: open_store(path, fs=self.fs, clock=clock, **given),
            )
            return xtree.Runtime(self.path, mode, config=self.config, on_error=self.told.append)

    def take_steps(self, runtime: xtree.Runtime) -> None:
        for number, step in enumerate(self.script.steps):
            if number == self.script.snapshot_before:
                with self.fs.healthy():
                    for name in runtime.trees():
                        self.snapshots[name] = (runtime.tree(name).snapshot(), self.model.tree(name).records.copy())
            self.take(runtime, step)
        if self.lasting == "for a while":
            self.fs.heal()
        if self.lasting != "for good":
            self.take(runtime, change("insert_many", 9000, 3, "probe", 1))
            self.require_state(runtime)
        self.fs.calls_of_steps = self.fs.calls

    def take(self, runtime: xtree.Runtime, step: Step) -> None:
        before, failures = self.model.contents(), len(self.fs.failures)
        self.fs.appended = False
        try:
            step.make_trees(runtime)
            self.fs.appended = False
            step.act(runtime)
        except (*FAILURES, StoreFailedError) as error:
            self.require_documented(error)
            if self.fs.appended and self.fs.poisoning:
                self.in_doubt = True
                later = Model(before)
                step.act(later)
                self.possible.append(later.contents())
        else:
            step.act(self.model)
            self.possible = [self.model.contents()]
        with contextlib.suppress(StoreFailedError, *FAILURES):
            settle(runtime._store)
        checkpointer = runtime._store._coordinator.checkpointer
        if self.fs.poisoning and checkpointer._thread is not None:  # it may fail just now, and then no leader answers
            checkpointer.call(lambda: None)
        if len(self.fs.failures) > failures:
            if self.lasting == "for a while":
                self.fs.heal()
            self.require_reads_are_right_or_fail(runtime)
            self.require_state(runtime)

    def close(self, runtime: xtree.Runtime) -> None:
        try:
            runtime.close()
        except (*FAILURES, StoreFailedError) as error:
            self.require_documented(error)
        assert runtime.closed
        for snapshot, _ in self.snapshots.values():
            with pytest.raises(xtree.ClosedError):
                snapshot.items()

    # What must hold.

    def require_documented(self, error: BaseException) -> None:
        """Asserts that an error arrives as it is, and StoreFailedError only after one that poisons."""
        if isinstance(error, StoreFailedError):
            assert self.fs.poisoning or self.fs.may_poison
        elif self.fs.fault.kind == NO_MEMORY:
            assert isinstance(error, MemoryError)
        else:
            assert isinstance(error, OSError) and error.errno == KINDS[self.fs.fault.kind]

    def require_state(self, runtime: xtree.Runtime) -> None:
        """Asserts that what was acknowledged is there and nothing else, that failures have poisoned if they must, and
        that nothing is held that isn't needed."""
        store = runtime._store
        with self.fs.healthy():
            if self.fs.poisoning or not self.fs.may_poison:
                assert store.state == ("poisoned" if self.fs.poisoning else "open"), self.fs.failures
            assert contents(runtime) == self.model.contents()
            for snapshot, held in self.snapshots.values():
                assert brute_force.records(*snapshot.items()) == held
            store.check()
            assert self.in_doubt or store.stats()["object_table"]["reserved"] == 0
        for error in self.told:
            self.require_documented(error)

    def require_reads_are_right_or_fail(self, runtime: xtree.Runtime) -> None:
        try:
            found = contents(runtime)
        except FAILURES as error:
            self.require_documented(error)
        else:
            assert found == self.model.contents()

    def require_nothing_left(self) -> None:
        """Asserts that a closed index has left no descriptor, mapping or thread."""
        place = str(self.path)
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                assert not os.readlink(f"/proc/self/fd/{number}").startswith(place + "/")
        assert place + "/" not in Path("/proc/self/maps").read_text()
        assert own_threads() <= self.threads

    def require_reopened(self) -> None:
        """Asserts that the lock is free, the state is a possible one, and a second recovery changes nothing."""
        with xtree.Runtime(self.path, config=self.config) as runtime:
            found = contents(runtime)
            assert found in self.possible
            runtime.check()
            require_answers(runtime, found)
            runtime.tree("probe", 1).insert(1, (0.5,))
        with xtree.Runtime(self.path, config=self.config) as runtime:
            again = contents(runtime)
            again["probe"] -= brute_force.records(np.array([1]), np.array([[0.5, 0.5]]))
            assert {name: records for name, records in again.items() if records} == found
            runtime.check()


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("xtree-")}


def contents(runtime: xtree.Runtime) -> Contents:
    found = {name: brute_force.records(*runtime.tree(name).items()) for name in runtime.trees()}
    return {name: records for name, records in found.items() if records}


def require_answers(runtime: xtree.Runtime, expected: Contents) -> None:
    """Asserts that queries are answered as by a scan of all records."""
    for name, records in expected.items():
        tree = runtime.tree(name)
        windows = brute_force.random_boxes(np.random.default_rng(len(records)), 2, tree.dims, 0.4)
        brute_force.assert_same(tree, *brute_force.arrays(records.elements(), tree.dims), windows)


def make_template(script: Script, mode: str, path: Path) -> Path:
    """A directory as the script finds it, or none."""
    if script.before:
        work = path if not script.crashed else path.with_name("running")
        with xtree.Runtime(work, config=small(mode, **script.config)) as runtime:
            take(runtime, script.before)
            settle(runtime._store)
            if script.crashed:
                shutil.copytree(work, path)
    return path


def attempt(script: Script, template: Path, path: Path, mode: str, fault: Fault = Fault()) -> WatchedFileSystem:
    """Runs a history with a fault. Returns its file system."""
    if template.exists():
        shutil.copytree(template, path)
    fs = WatchedFileSystem(fault)
    set_hook(fs.reached)
    try:
        Attempt(script, path, mode, fs).run()
    finally:
        set_hook(None)
    shutil.rmtree(path)
    return fs
