"""Fixtures: stores and trees in both their kinds, checked and closed after each test."""

from __future__ import annotations

import collections
import gc
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.damaged_indexes import Records, build
from support.tree_walks import assert_no_page_left

import xtree
from xtree.persistence.opening import open_store
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

pytest.register_assert_rewrite("support.faulty_histories")

MEMORY_FILE_SYSTEM = "/dev/shm"
TALLY = "tried: "
LONGEST = (  # test files, by how long they take: what begins last should be short
    "moved_directory", "forks", "epoch_model", "sharing_races", "crash_everywhere", "modes", "errors_everywhere",
    "reentrance", "packaging", "kill", "leaf_group", "ctrl_c", "recycler", "hostile_files", "reader_torture",
    "crash_in_recovery", "recovery", "window_kernels", "long_calls", "changing_input", "breath", "join", "examples",
    "sharing", "lint", "fsck", "allocation_failure", "model", "adversarial", "footprint", "parallel_load",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Puts tmp_path on a file system in memory where there is one: what a killed process wrote is kept there too, and
    thousands of syncs cost nothing. `--basetemp` chooses another place."""
    if config.option.basetemp is None and os.path.isdir(MEMORY_FILE_SYSTEM) and not hasattr(config, "workerinput"):
        config.option.basetemp = tempfile.mkdtemp(prefix="xtree-tests-", dir=MEMORY_FILE_SYSTEM)
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))
    config.option.loadscopereorder = False  # xdist's order, by the number of tests, says little about the time


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker begins one of them when the others have done everything."""
    stems = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    if unknown := [name for name in LONGEST if f"test_{name}" not in stems]:
        raise pytest.UsageError(f"LONGEST in conftest.py names files that aren't there: {', '.join(unknown)}")
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def earlier_out_of_sight() -> None:
    """Hides what was imported, and what earlier files have left, from the collector: tests that collect often would
    look at all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tally(record_property):
    """tally(what, n=1): counts what a test has tried; the sums of all tests stand at the end of the run."""
    return lambda what, n=1: record_property(TALLY + what, n)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was tried, by name, summed over all tests and workers."""
    sums: collections.Counter[str] = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, n in getattr(report, "user_properties", ()):
                if getattr(report, "when", "") == "call" and name.startswith(TALLY):
                    sums[name.removeprefix(TALLY)] += n
    if sums:
        terminalreporter.section("tried")
        for name, n in sorted(sums.items()):
            terminalreporter.write_line(f"{n:12,} {name}")


@pytest.fixture(params=["memory", "durable"])
def store(request, tmp_path):
    """An empty store, closed after the test."""
    made = MemoryStore() if request.param == "memory" else open_store(tmp_path / "index", mode="x")
    yield made
    if made.state == "open":
        made.check()
    made.close()


@pytest.fixture
def in_flight(request):
    """Keeps the pages of `store`, if the test has one, in place: calls of the tree's modules need that."""
    if "store" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("store").in_flight():
        yield


@pytest.fixture
def ws():
    """The write set of a store in memory. It is aborted after the test, and the store then has no page."""
    store = MemoryStore()
    write_set = begin(store)
    yield write_set
    write_set.abort()
    store.check()
    assert_no_page_left(store)
    store.close()


@pytest.fixture(params=["memory", "durable"])
def make_tree(request, tmp_path):
    """make_tree(dims=2, config=None) -> XTree; after the test each is checked, also for lost pages, and closed."""
    trees: list[xtree.XTree] = []

    def make(dims: int = 2, config: xtree.Config | None = None) -> xtree.XTree:
        if request.param == "memory":
            tree = xtree.XTree(dims, config=config)
        else:
            tree = xtree.open(tmp_path / f"tree-{len(trees)}.xtree", dims=dims, config=config)
        trees.append(tree)
        return tree

    yield make
    for tree in trees:
        if not tree.closed:
            tree.check()
            if len(tree) == 0:
                assert tree._store.stats()["object_table"]["live"] == 0
        tree.close()
    trees.clear()  # `make` outlives the test


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> dict[str, tuple[Path, Records]]:
    """Indexes to damage copies of, each with its records: a closed one, a killed one, a closed one of other content."""
    where = tmp_path_factory.mktemp("made")
    return {name: (where / name, build(where / name, name != "killed")) for name in ("closed", "killed", "other")}


@pytest.fixture
def closed(made, tmp_path) -> Path:
    """The path of a copy of the closed index."""
    return Path(shutil.copytree(made["closed"][0], tmp_path / "closed"))


@pytest.fixture
def killed(made, tmp_path) -> Path:
    """The path of a copy of the killed index."""
    return Path(shutil.copytree(made["killed"][0], tmp_path / "killed"))


@pytest.fixture
def random(request) -> np.random.Generator:
    """A random generator, whose seed shows with a failure."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)
