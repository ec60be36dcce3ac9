"""What an index takes: small trees are small, in memory and in address space, and a large one fits into little space.

Promises (Nothing acknowledged is lost):

- a small tree in memory takes less than 64 kB, and no mapping of its own; an index of 45 MB works in 700 MB of
  address space; where even that is too little, a write fails and nothing is lost:
  test_a_small_tree_in_memory_takes_less_than_64_kilobytes, test_ten_thousand_small_trees_take_few_mappings,
  test_an_index_of_45_megabytes_works_in_700_of_address_space,
  test_a_tree_of_45_megabytes_is_made_in_memory_in_700_of_address_space,
  test_without_address_space_for_a_larger_mapping_a_write_fails_and_nothing_is_lost.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc and RLIMIT_AS")

HELPERS = """
import errno, resource, sys
import numpy as np
import xtree

def figures():
    with open("/proc/self/status") as status:
        found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmRSS", "VmSize"))}
    with open("/proc/self/maps") as maps:
        return np.array([found["VmRSS"], found["VmSize"], sum(1 for _ in maps)])

def small(records):
    tree = xtree.XTree(2)
    for i in range(records):
        tree.insert(i, [i, i, i + 1.0, i + 1.0])
    return tree

def limit_address_space(mib):
    resource.setrlimit(resource.RLIMIT_AS, (mib << 20, resource.RLIM_INFINITY))

def points(n, seed=1):
    return np.random.default_rng(seed).random((n, 2))
"""

EACH = """
records, trees = int(sys.argv[1]), int(sys.argv[2])
small(records)
before = figures()
kept = [small(records) for _ in range(trees)]
print(*(figures() - before))
assert all(tree.count([0.0, 0.0, 1e9, 1e9]) == records for tree in kept[::97])
"""

LARGE = """
path = sys.argv[1]
xtree.XTree.from_boxes(points(1_100_000), dims=2, path=path).close()
"""

OPENED = """
limit_address_space(700)
with xtree.open(sys.argv[1]) as tree:
    n = len(tree)
    assert tree.runtime.stats()["data_files"]["bytes"] > 45_000_000, tree.runtime.stats()["data_files"]
    window = [0.2, 0.2, 0.4, 0.4]
    inside = tree.query(window)
    expected = np.flatnonzero(((points(n) >= 0.2) & (points(n) <= 0.4)).all(1))
    assert np.array_equal(np.sort(inside), expected)
    assert len(tree.nearest([0.5, 0.5], 10)) == 10
    for i in range(2000):
        tree.insert(n + i, points(1, 5)[0])
    tree.insert_many(np.arange(20_000) + 2 * n, points(20_000, 7))
    assert tree.count([0.0, 0.0, 1.0, 1.0]) == n + 22_000
    tree.check()
print("answered")
"""

OUTGROWN = """
# Less than what the index takes once it has grown: something fails, by name, and nothing is lost by it.
tree = xtree.open(sys.argv[1], dims=2, durability="eventual")
tree.insert_many(np.arange(1000), points(1000))
committed = 1000
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmSize"))
limit_address_space(used + 24)
failed = None
for i in range(60):
    try:
        tree.insert_many(np.arange(20_000), points(20_000, i))
        committed += 20_000
    except (MemoryError, OSError, xtree.CapacityError) as error:
        assert not isinstance(error, OSError) or error.errno == errno.ENOMEM, error
        failed = error
        break
assert failed is not None, "it all fits"
assert len(tree) == committed
assert 1 in tree.query(points(1000)[1])
limit_address_space(4000)
tree.insert_many(np.arange(20_000), points(20_000, 99))
assert len(tree) == committed + 20_000
tree.check()
tree.close()
with xtree.open(sys.argv[1]) as tree:
    tree.check()
    assert len(tree) == committed + 20_000
print("answered")
"""

IN_MEMORY = """
limit_address_space(700)
tree = xtree.XTree.from_boxes(points(1_100_000), dims=2)
assert len(tree) == 1_100_000 and tree.count([0.0, 0.0, 1.0, 1.0]) == 1_100_000
tree.insert_many(np.arange(20_000), points(20_000, 7))
tree.check()
print("answered")
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", HELPERS + program, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("records", [0, 5, 100])
def test_a_small_tree_in_memory_takes_less_than_64_kilobytes(records):
    resident, reserved, mappings = map(int, run(EACH, records, 1000).split())
    assert resident < 64 * 1000 and reserved < 80 * 1000 and mappings < 1000, (resident, reserved, mappings)


@pytest.mark.slow
def test_ten_thousand_small_trees_take_few_mappings():
    _, reserved, mappings = map(int, run(EACH, 5, 10_000).split())
    assert reserved < 64 * 10_000 and mappings < 10_000, (reserved, mappings)


def test_an_index_of_45_megabytes_works_in_700_of_address_space(tmp_path):
    run(LARGE, tmp_path / "index")
    assert run(OPENED, tmp_path / "index") == "answered\n"


def test_a_tree_of_45_megabytes_is_made_in_memory_in_700_of_address_space():
    assert run(IN_MEMORY) == "answered\n"


def test_without_address_space_for_a_larger_mapping_a_write_fails_and_nothing_is_lost(tmp_path):
    assert run(OUTGROWN, tmp_path / "index") == "answered\n"
