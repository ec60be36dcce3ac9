"""The benchmark runs, checks itself, and says what it measured in the shape that programs read. No figure is judged.

Promises (What people touch):

- the benchmark of the store runs, and a contestant that loses a record has no figures:
  test_each_durability_mode_is_measured_beside_the_disk_and_the_other_engines,
  test_a_benchmark_that_loses_a_record_has_no_figures.
"""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from xtree.persistence.store.memory_store import MemoryStore
from xtree.tools.bench import peers, substrate
from xtree.tools.bench.cli import bench
from xtree.tools.bench.memory import make_nodes
from xtree.tools.bench.report import Report, WrongAnswerError, require
from xtree.tools.bench.substrate import Scale, bench_substrate
from xtree.tools.probes import loops

TINY = Scale(
    rounds=2,
    nodes=(2000,),
    allocations=2000,
    threads=(1, 3),
    tree_records=500,
    writer_records=1000,
    commit_seconds=0.01,
    checkpoint_records=2000,
    checkpoint_commits=20,
    small_commits=50,
    large_records=5000,
    large_log_bytes=1 << 18,
    grown_records=2000,
)
SECTIONS = {"resolve", "allocator", "commits", "batches", "writers", "groups", "growth", "checkpoint", "open", "size"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The JSON that `bench substrate` writes in a tiny run, with the printed lines under "said"."""
    directory = tmp_path_factory.mktemp("bench")
    file = directory / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(substrate, "QUICK", TINY)
        done = CliRunner().invoke(bench, ["substrate", "--quick", "--dir", str(directory), "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert [path.name for path in directory.iterdir()] == ["result.json"]
    return {**json.loads(file.read_text(encoding="utf-8")), "said": done.output}


@pytest.mark.slow
def test_every_figure_has_samples_a_median_and_ratios_to_figures_of_the_same_run(result):
    figures = result["figures"]
    assert {figure["section"] for figure in figures} >= SECTIONS
    names = {figure["name"] for figure in figures}
    for figure in figures:
        assert set(figure) == {"section", "name", "unit", "samples", "median", "least", "most", "ratios", "targets",
                               "note"}
        assert all(math.isfinite(sample) and sample >= 0 for sample in figure["samples"]), figure
        assert figure["least"] <= figure["median"] <= figure["most"]
        assert set(figure["ratios"]) <= names and all(ratio > 0 for ratio in figure["ratios"].values())
        assert figure["name"] in result["said"]


def test_each_durability_mode_is_measured_beside_the_disk_and_the_other_engines(result):
    ratios = {figure["name"]: figure["ratios"] for figure in result["figures"] if figure["section"] == "commits"}
    for mode in ("strict", "balanced"):
        assert {"raw append, extending", "raw append, overwriting", "SQLite"} <= set(ratios[f"{mode}, 1 thread"])
        for trees in ("own trees", "one tree"):
            assert set(ratios[f"{mode}, 3 threads, {trees}"]) == {f"{mode}, 1 thread"}
    assert "eventual, 1 thread" in ratios
    for mode in ("strict", "balanced", "eventual"):
        assert "raw append, extending" in ratios[f"{mode}, 1 thread, 10 inserts a commit"]
    for ids in ("ascending ids", "random ids"):
        for peer, mode in ((f"LMDB, {ids}", "balanced"), (f"LMDB without sync, {ids}", "eventual")):
            assert (peer in ratios) == (peer in ratios[f"{mode}, 1 thread"])
            assert (peer in ratios) != (peer in result["skipped"])


def test_two_writers_are_measured_beside_two_processes_and_one_writer_beside_queries(result):
    ratios = {figure["name"]: figure["ratios"] for figure in result["figures"] if figure["section"] == "writers"}
    for kind in ("memory", "durable"):
        name = f"insert_many, own trees, {kind}"
        assert set(ratios[f"{name}, 2 threads ÷ 1"]) == {f"{name}, 2 processes ÷ 1"}
    for mode in ("balanced", "eventual"):
        assert set(ratios[f"{mode}, 8 threads of queries beside it"]) == {f"{mode}, no queries beside it"}


def test_a_large_tree_is_measured_beside_a_small_one_that_grew_alike(result):
    figures = {figure["name"]: figure for figure in result["figures"] if figure["section"] == "growth"}
    assert set(figures["one insert into 2,000 records"]["ratios"]) == {"one insert into 20 records"}
    assert figures["1,000 inserts anywhere into 2,000 records, log"]["least"] > 0


def test_a_run_says_on_what_and_how_much_was_measured(result):
    assert set(result) >= {"benchmark", "xtree", "machine", "scale", "seconds", "skipped"}
    assert set(result["machine"]) >= {"system", "processor", "cpus", "load", "python"}
    assert result["scale"]["small_commits"] == TINY.small_commits


def test_a_missing_engine_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    said: list[str] = []
    monkeypatch.setattr(substrate, "measure_writers", lambda *_: None)
    monkeypatch.setattr(substrate, "measure_groups", lambda *_: None)
    monkeypatch.setattr(substrate, "measure_growth", lambda *_: None)
    monkeypatch.setattr(substrate, "measure_checkpoints", lambda *_: None)
    monkeypatch.setattr(substrate, "measure_recovery", lambda *_: None)
    monkeypatch.setattr(substrate, "measure_size", lambda *_: None)
    result = bench_substrate(TINY, tmp_path, said.append)
    names = {"LMDB", "LMDB without sync"}
    assert set(result["skipped"]) == {f"{name}, {ids}" for name in names for ids in ("ascending ids", "random ids")}
    assert all("xtree-index[bench]" in reason for reason in result["skipped"].values())
    assert any("skipped" in line for line in said)


def test_a_benchmark_that_loses_a_record_has_no_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(peers.Sqlite, "commit", lambda self, ids, boxes: None)
    with pytest.raises(WrongAnswerError, match="SQLite holds 0 records"):
        bench_substrate(TINY, tmp_path, lambda line: None)
    assert not list(tmp_path.iterdir())


def test_resolving_agrees_with_an_array_of_pointers():
    store = MemoryStore()
    nodes, addresses = make_nodes(store, 3000)
    pages = np.empty(3000, np.uint64)
    loops.pages_at(store.windows, addresses, pages)
    plain = loops.PlainStore(store, nodes)
    some = np.random.default_rng(1).permutation(3000)[:999].astype(np.uint64)
    expected = int(pages[some].sum())
    assert loops.look_up_all(pages, some) == expected
    assert loops.resolve_all(store, nodes[some]) == expected
    assert loops.resolve_all_plainly(plain, nodes[some]) == expected
    with pytest.raises(ValueError, match="isn't there"):
        loops.resolve_all_plainly(plain, nodes[:1] + np.uint64(1))
    with pytest.raises(ValueError, match="no row"):
        loops.PlainStore(store, np.array([1 << 40], np.uint64))
    store.close()


def test_slots_of_a_probe_are_given_back():
    store = MemoryStore()
    assert loops.replace_slots(store.allocator, 2, np.arange(1000, dtype=np.uint64) % 256) == 256
    assert store.allocator.slots_used == 0
    store.allocator.check()
    store.close()


def test_a_ratio_is_that_of_samples_taken_together():
    report = Report(lambda line: None)
    slow = report.add("s", "slow", "ms", [1.0, 10.0, 100.0])
    fast = report.add("s", "fast", "ms", [2.0, 20.0, 200.0], against=[slow, None])
    assert fast.ratios == {"slow": 2.0}
    assert report.as_dict()["figures"][1]["median"] == 20.0
    with pytest.raises(WrongAnswerError, match="seven"):
        require(False, "seven")
