"""Runs a workload once, notes each moment at which a crash could come, and judges what crashes there leave."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import xtree
from support import brute_force
from support.forgetful_fs import (
    SECTORS,
    DiskState,
    ForgetfulFileSystem,
    Image,
    PowerLoss,
    digest,
    read_image,
    write_image,
)
from support.stack_writer import PageStack
from support.text_pages import MODES, check_after_a_power_loss
from support.workloads import COPY, INDEX, WORKLOADS, Model, Stage, canonical, models, open_runtime, records, stack_of
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.opening import exists
from xtree.tools.fsck import fsck
from xtree.tools.fsck.report import DAMAGE, Finding

UNBORN = -1  # in place of an epoch: there is no index yet

Contents = dict[str, bytes]  # by name: records or items, as bytes that depend on the content only


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a run: what was to come next, the disk, and what had been promised by then.

    `finished`, `begun`: the numbers of such steps, with the opening as the first one; `visible`: the epoch that readers
    saw; `durable`: the epoch that the store itself takes for durable; `handed_out`: the last that a commit may have.
    """

    number: int
    what: str
    state: DiskState
    mode: str
    finished: int
    begun: int
    visible: int
    durable: int
    handed_out: int


@dataclasses.dataclass
class Run:
    """What happened: the epoch after each step, what the index held then, and every moment."""

    workload: str
    mode: str
    epochs: list[int]
    contents: dict[int, Contents]  # by epoch
    models: dict[int, Model]
    moments: list[Moment]
    backed_up: int | None = None  # the step that made a backup


class Watch:
    """Notes the moments of a run, also those of threads in the background."""

    def __init__(self, fs: ForgetfulFileSystem) -> None:
        self.fs = fs
        self.stage: Stage | None = None
        self.mode = ""
        self.finished = self.begun = self.visible = self.durable = self.handed_out = 0
        self.moments: list[Moment] = []
        fs.observe = self.note

    def note(self, what: str) -> None:
        """Notes a moment."""
        runtime = None if self.stage is None else self.stage.runtime
        share = None if runtime is None else runtime._session.share
        if share is not None:  # there is one while the store is being closed too
            coordinator = share.store._coordinator
            self.durable = max(self.durable, coordinator.durable_epoch)
            self.visible = max(self.visible, share.store.published.epoch)
            self.handed_out = max(self.handed_out, coordinator.following_epoch - 1, self.visible)
        self.moments.append(
            Moment(len(self.moments), what, self.fs.state(), self.mode, self.finished, self.begun, self.visible,
                   self.durable, self.handed_out)
        )  # fmt: skip


@contextlib.contextmanager
def watched(fs: ForgetfulFileSystem) -> Iterator[Watch]:
    """Notes the moments of a block, and the one after it."""
    watch = Watch(fs)
    set_hook(fs.reach)
    try:
        yield watch
        fs.reach("the end")
    finally:
        set_hook(None)
        fs.observe = lambda what: None


def run(name: str, mode: str, root: Path) -> Run:
    """Performs a workload, up to the clean close of its index."""
    workload = WORKLOADS[name]
    root.mkdir()
    fs = ForgetfulFileSystem(root)
    stage = Stage(root, workload, mode, fs)
    with watched(fs) as watch:
        watch.begun, watch.mode, watch.stage = 1, mode, stage
        stage.open()
        epochs = [stage.runtime.stats()["epoch"]]
        watch.finished = 1
        for number in range(len(workload.steps)):
            watch.begun = number + 2
            stage.perform(number)
            epochs.append(stage.runtime.stats()["epoch"])
            watch.mode, watch.finished = stage.mode, number + 2
        stage.runtime.close()
    shutil.rmtree(root)
    states = models(workload)
    held = {epoch: contents_of(model) for epoch, model in zip(epochs, states)}
    backed_up = next((number for number, step in enumerate(workload.steps) if step[0] == "backup"), None)
    return Run(name, mode, epochs, held, dict(zip(epochs, states)), watch.moments, backed_up)


def contents_of(model: Model) -> Contents:
    """The contents of an index that is as the model says."""
    return {
        name: b"\n".join(held) if isinstance(held, tuple)
        else canonical(*brute_force.arrays(held.elements(), len(next(iter(held))[1]) // 2)) if held else b""
        for name, held in model.items()
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """What was recovered from an image: the epoch, or UNBORN, and the first epoch that was handed out afterwards."""

    epoch: int
    following: int
    copy: int | None = None  # the epoch of the backup beside it; UNBORN for one that refuses to open


def torn_at_the_close(finding: Finding) -> bool:
    """Whether a finding is about one superblock copy: if the manifest lists no logs, a torn write looks like damage."""
    return finding.part == "superblock" and finding.offset in (0, 4096)


def verify(path: Path, config: xtree.Config) -> tuple[int, Contents]:
    """Asserts that recovery works without a write, and that every check passes. Returns the epoch and contents."""
    report = fsck(path)
    damaged = [str(finding) for finding in report.of(DAMAGE) if not torn_at_the_close(finding)]
    assert report.opens and not damaged, damaged
    with open_runtime(path, config, mode="r") as runtime:
        check_after_a_power_loss(runtime, runtime._store)
        return runtime.stats()["epoch"], held_by(runtime)


def held_by(runtime: xtree.Runtime) -> Contents:
    """The contents of an index."""
    held = {name: canonical(*runtime.tree(name).items()) for name in runtime.trees()}
    held |= {name: b"\n".join(list(PageStack(stack_of(runtime)(name)))[::-1]) for name in runtime.structures()}
    return held


class Examiner:
    """Recovers images in a directory of its own, each once, and makes all checks that don't depend on the moment."""

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        self.found: dict[tuple[bytes, str], Found] = {}

    def examine(self, image: Image, mode: str) -> Found:
        """What is recovered from an image: a whole state of the run, which stays the same and takes more commits."""
        key = digest(image), mode
        if key not in self.found:
            write_image(image, self.path)
            self.found[key] = self._examined(image, mode)
            shutil.rmtree(self.path)
        return self.found[key]

    def _examined(self, image: Image, mode: str) -> Found:
        root = self.path
        copy = self._copied(root / COPY) if (root / COPY).exists() else None
        path, config = root / INDEX, WORKLOADS[self.run.workload].config(mode)
        if not exists(path):
            with open_runtime(path, config) as runtime:
                assert not held_by(runtime)
            return Found(UNBORN, 0, copy)
        epoch, held = verify(path, config)
        assert epoch in self.run.contents, f"recovered epoch {epoch}, which is no step's"
        assert held == self.run.contents[epoch], f"epoch {epoch} holds something else than the step left"
        assert read_image(root) == image, "a read-only open has written"
        with open_runtime(path, config) as runtime:
            assert runtime.stats()["epoch"] == epoch and held_by(runtime) == held, "recovered again it's another state"
            check_after_a_power_loss(runtime, runtime._store)
            require_right_answers(runtime)
            more = write_more(runtime, self.run.models[epoch])
            following = runtime.stats()["epoch"]
        assert verify(path, config) == (following, more), "what was written afterwards isn't there"
        return Found(epoch, following, copy)

    def _copied(self, path: Path) -> int:
        try:
            if not exists(path):
                return UNBORN
        except xtree.CorruptionError as error:
            assert "superblock" in str(error)
            return UNBORN
        epoch, held = verify(path, xtree.Config())
        assert held == self.run.contents[epoch], "the backup holds something else than the index did"
        return epoch


def require_right_answers(runtime: xtree.Runtime) -> None:
    """Asserts that windows of every tree find what a scan of all records finds."""
    for name in runtime.trees():
        tree = runtime.tree(name)
        ids, boxes = tree.items()
        windows = brute_force.random_boxes(np.random.default_rng(len(ids)), 3, tree.dims, 0.5)
        offsets, found = tree.query(windows, output="csr")
        for window, hits in zip(windows, np.split(found, offsets[1:-1])):
            assert sorted(hits.tolist()) == brute_force.query(ids, boxes, window)


def write_more(runtime: xtree.Runtime, model: Model) -> Contents:
    """Commits changes to everything there is. Returns the contents then."""
    if not model:
        runtime.tree("more", dims=2)
        return {"more": b""}
    model = dict(model)
    with runtime.transaction(trees=sorted(model)) as tx:
        for name in runtime.trees():
            some = records(len(WORKLOADS) * 1000, runtime.tree(name).dims, 12)
            tx.tree(name).insert_many(*some)
            model[name] = model[name] + brute_force.records(*some)
        for name in runtime.structures():
            PageStack(tx.structure(name)).push(b"more")
            model[name] = (*model[name], b"more")
    return contents_of(model)


def judge(run: Run, moment: Moment, found: Found, killed: bool = False) -> None:
    """Asserts that what was recovered is what had been promised, or later, and that epochs go on.

    killed: only the process died; then even `eventual` has promised whatever it acknowledged.
    """
    if found.epoch == UNBORN:
        assert moment.finished == 0, "the index isn't there any more"
        return
    if moment.finished:
        promised = moment.durable
        if killed or moment.mode != "eventual":
            promised = max(promised, moment.visible, run.epochs[moment.finished - 1])
        assert promised <= found.epoch, f"epoch {promised} was promised, {found.epoch} recovered"
    assert found.epoch <= run.epochs[min(moment.begun, len(run.epochs)) - 1], "a commit that never began"
    assert found.following > moment.handed_out, f"epoch {found.following} was handed out again"
    if run.backed_up is not None:
        copied = run.epochs[run.backed_up + 1]
        assert found.copy in ((copied,) if moment.finished > run.backed_up + 1 else (None, UNBORN, copied))


@dataclasses.dataclass(frozen=True)
class Case:
    """A crash: when, and how it turns out. seed None: the process is killed, and nothing is lost."""

    moment: Moment
    seed: int | None
    sector_bytes: int = 0

    def image(self) -> Image:
        """What the crash leaves."""
        if self.seed is None:
            return self.moment.state.after_kill()
        return self.moment.state.after(PowerLoss(self.seed, self.sector_bytes))

    def __str__(self) -> str:
        how = "kill" if self.seed is None else f"power loss with seed {self.seed} and sectors of {self.sector_bytes}"
        return f"{how} at moment {self.moment.number}, {self.moment.what!r}"


def cases(moments: list[Moment], seeds: int) -> Iterator[Case]:
    """Every moment with every way to crash."""
    for moment in moments:
        yield Case(moment, None)
        for sector_bytes in SECTORS:
            for seed in range(seeds):
                yield Case(moment, seed, sector_bytes)


def sample(moments: list[Moment], n: int, rng: random.Random) -> Iterator[Case]:
    """Some of the cases: n states of the disk, each with one way to crash, at every moment that has this state."""
    by_state = collections.defaultdict(list)
    for moment in moments:
        by_state[id(moment.state)].append(moment)
    states = list(by_state.values())
    for _ in range(n):
        seed, sector_bytes = rng.choice((None, 0, 1, 2, *[rng.randrange(1 << 32)] * 12)), rng.choice(SECTORS)
        for moment in rng.choice(states):
            yield Case(moment, seed, sector_bytes)


def firsts(moments: list[Moment], losses: int, killed: int, rng: random.Random) -> list[Case]:
    """Crashes whose recovery is to crash too: some of all, and some kills while a frame isn't on the disk yet."""
    appended = [moment for moment in moments if moment.what == "commit.appended"]
    found = [next(sample(moments, 1, rng)) for _ in range(losses)]
    return found + [Case(rng.choice(appended), None) for _ in range(killed)]


class Inquiry:
    """Judges cases of a run, and counts them."""

    def __init__(self, run: Run, path: Path) -> None:
        self.run = run
        self.examiner = Examiner(run, path)
        self.cases = 0
        self._known: dict[tuple[int, str, int | None, int], Found] = {}

    def ask(self, case: Case) -> Found:
        """What is recovered after a crash. Asserts that it is as it must be."""
        moment = case.moment
        key = id(moment.state), moment.mode, case.seed, case.sector_bytes
        self.cases += 1
        try:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self.examiner.examine(case.image(), moment.mode)
            judge(self.run, moment, found, case.seed is None)
        except Exception as error:
            raise AssertionError(f"{self.run.workload}, {self.run.mode}: {case}") from error
        return found

    def ask_again(self, case: Case, root: Path, choose: Callable[[list[Moment]], Iterable[Case]]) -> None:
        """Crashes the recovery after a crash, at moments that `choose` picks. What is recovered stays the same.

        A recovery after a kill may find what isn't on the disk, so then this holds once that recovery has ended.
        """
        first = self.ask(case)
        if first.epoch == UNBORN:
            return
        if case.seed is None:
            fs = ForgetfulFileSystem.after_kill(case.moment.state, root)
        else:
            write_image(case.image(), root)
            fs = ForgetfulFileSystem(root)
        config = WORKLOADS[self.run.workload].config(case.moment.mode)
        with watched(fs) as watch:
            watch.mode = case.moment.mode
            with open_runtime(root / INDEX, config, fs=fs) as runtime:
                watch.finished = 1
                assert runtime.stats()["epoch"] == first.epoch
        shutil.rmtree(root)
        for again in choose(watch.moments):
            self.cases += 1
            try:
                found = self.examiner.examine(again.image(), case.moment.mode)
                if case.seed is None and not again.moment.finished:
                    judge(self.run, case.moment, dataclasses.replace(found, copy=first.copy))
                    assert found.epoch <= first.epoch
                else:
                    assert found.epoch == first.epoch, f"recovered {first.epoch} first, {found.epoch} then"
                if found.epoch != UNBORN:
                    assert found.following > case.moment.handed_out, f"epoch {found.following} was handed out again"
            except Exception as error:
                raise AssertionError(f"{self.run.workload}, {self.run.mode}: {case}, then {again}") from error


every_mode = pytest.mark.parametrize("mode", MODES)
every_workload = pytest.mark.parametrize("name", WORKLOADS)


def count(tally, what: str, inquiry: Inquiry) -> None:
    """Adds the counts of an inquiry to those of the test run."""
    tally(f"crashes {what}", inquiry.cases)
    tally(f"different states of a directory {what}", len(inquiry.examiner.found))
