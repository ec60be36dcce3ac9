"""Many named trees in one directory: a catalog that is exact, commits that stay small, space that comes back.

Promises (Nothing acknowledged is lost):

- a thousand trees come back exactly, after a crash too:
  test_trees_by_the_thousand_are_made_changed_and_found_again, test_trees_by_the_thousand_come_back_after_a_crash.

Promises (One writer, many readers):

- dropping a tree gives its space back:
  test_the_space_of_dropped_trees_is_used_again_and_files_shrink_at_the_close.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.many_trees import change, make, name_of, records
from support.places import TESTS

import xtree

FILL = """
import os, sys
sys.path.insert(0, sys.argv[3])
import xtree
from support.many_trees import change, make
runtime = xtree.Runtime(sys.argv[1])
make(runtime, int(sys.argv[2]))
change(runtime, int(sys.argv[2]))
os._exit(0)
"""


def verify(runtime: xtree.Runtime, n: int) -> None:
    """Asserts that the catalog and every tree are as `make` and `change` leave them."""
    kept = [i for i in range(n) if i % 5]
    assert runtime.trees() == sorted(map(name_of, kept))
    assert runtime.stats()["roots"] == len(kept)
    for i in kept:
        tree = runtime.tree(name_of(i))
        assert tree.dims == 1 + i % 4
        expected = [*records(i)[0].tolist(), -i, *([1000 + i] if i % 3 == 0 else [])]
        assert sorted(tree.items()[0].tolist()) == sorted(expected)


def size_of(path: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in path.glob(pattern))


@pytest.mark.parametrize("n", [60, 1000])
def test_trees_by_the_thousand_are_made_changed_and_found_again(tmp_path, record_property, n):
    started = time.perf_counter()
    with xtree.Runtime(tmp_path / "index") as runtime:
        make(runtime, n)
        change(runtime, n)
        verify(runtime, n)
        runtime.check()
        written = runtime.stats()["coordinator"]["wal_bytes"]
    changed = time.perf_counter()
    with xtree.Runtime(tmp_path / "index") as runtime:
        opened = time.perf_counter()
        verify(runtime, n)
        runtime.check()
    figures = {
        "seconds to make and change": round(changed - started, 3),
        "seconds to open": round(opened - changed, 4),
        "bytes": size_of(tmp_path / "index"),
        "bytes logged": written,
    }
    print(n, "trees:", figures)
    for key, value in figures.items():
        record_property(key, value)
    assert size_of(tmp_path / "index") < n * 3 * 4096 + (1 << 20)
    assert written < 4 * n * 10_000  # a commit logs what it changes, not the catalog


@pytest.mark.parametrize("n", [40, 1000])
def test_trees_by_the_thousand_come_back_after_a_crash(tmp_path, n):
    command = [sys.executable, "-c", FILL, str(tmp_path / "index"), str(n), str(TESTS)]
    subprocess.run(command, check=True)
    for _ in range(2):
        with xtree.Runtime(tmp_path / "index") as runtime:
            verify(runtime, n)
            runtime.check()


def test_the_space_of_dropped_trees_is_used_again_and_files_shrink_at_the_close(tmp_path):
    path = tmp_path / "index"
    boxes = np.random.default_rng(1).random((20_000, 2))
    with xtree.Runtime(path) as runtime:
        runtime.tree("kept", dims=2).insert(1, (0, 0))
        for i in range(5):
            runtime.tree(f"old {i}", dims=2).bulk_load(np.arange(20_000), boxes)
        used, full = slots_used(runtime), size_of(path, "data-*")
        for i in range(5):
            runtime.drop(f"old {i}")
        runtime.checkpoint()
        runtime.tree("kept").insert(2, (0, 0))  # from here on, what was retired and is durable is free
        assert slots_used(runtime) <= 4
        for i in range(5):
            runtime.tree(f"new {i}", dims=2).bulk_load(np.arange(20_000), boxes)
        assert slots_used(runtime) <= used + 4
        assert size_of(path, "data-*") == full
        for i in range(5):
            runtime.drop(f"new {i}")
        runtime.check()
    with xtree.Runtime(path) as runtime:
        assert runtime.trees() == ["kept"] and len(runtime.tree("kept")) == 2
        runtime.check()
    assert size_of(path, "data-*") < full / 10


def slots_used(runtime: xtree.Runtime) -> int:
    return sum(of_class["used"] for of_class in runtime.stats()["allocator"].values())


def test_a_snapshot_keeps_the_space_of_a_dropped_tree_until_it_is_closed(tmp_path):
    boxes = np.random.default_rng(1).random((20_000, 2))
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("a", dims=2)
        tree.bulk_load(np.arange(20_000), boxes)
        snapshot, used = tree.snapshot(), slots_used(runtime)
        runtime.drop("a")
        runtime.tree("b", dims=2).insert(1, (0, 0))
        assert slots_used(runtime) > used and len(snapshot.query([0, 0, 1, 1])) == 20_000
        snapshot.close()
        runtime.tree("b").insert(2, (0, 0))
        assert slots_used(runtime) <= 4
        runtime.check()
