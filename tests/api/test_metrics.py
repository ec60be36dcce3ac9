"""Metrics: stats() has the names that are documented, its figures are right, and Prometheus gets them.

Promises (What people touch):

- figures have the names that are documented, in `stats()` and in Prometheus; nothing is printed:
  all of it, test_isolation.py::test_nothing_is_printed_unless_a_program_asks_for_the_log.
"""

from __future__ import annotations

import errno
import gc
import os
import re

import numpy as np
import prometheus_client
import pytest
from support.places import DOCS

import xtree
import xtree.prometheus
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.base.metrics import BOUNDS_S, Latency
from xtree.persistence.files.platform_fs import File, SyncFailedError
from xtree.persistence.store.memory_store import MemoryStore
from xtree.persistence.store.write_set import begin

PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def documented(section: str) -> set[str]:
    """The names in the first column of a section's table, each of which stands there once."""
    rows = re.findall(r"^\| (`[^|]+`) \|", SECTIONS[section], re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\|", SECTIONS[section], re.MULTILINE)) - 2
    names = [name for row in rows for name in row.split(", ")]
    assert all(re.fullmatch("`[a-z_.<>]+`", name) for name in names) and len(names) == len(set(names))
    return {name.strip("`") for name in names}


def names_of(stats: dict, prefix: str = "") -> set[str]:
    """The paths of all figures; a size class or bound is named as such, and the members of a list by its name."""
    found = set()
    for key, value in stats.items():
        part = {int: "<class>", float: "<bound>"}.get(type(key), key)
        members = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for member in members:
            found |= names_of(member, f"{prefix}{part}.") if isinstance(member, dict) else {prefix + part}
    return found


@pytest.fixture
def runtime(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        tree = runtime.tree("a", dims=2)
        tree.insert_many(np.arange(500), np.random.default_rng(1).random((500, 2)))
        yield runtime


def test_the_documented_names_are_those_that_there_are(runtime):
    assert names_of(runtime.stats()) == documented("Runtime.stats()")
    assert names_of(runtime.tree("a").stats()) == documented("tree.stats()")


def test_every_other_name_of_a_figure_in_the_documents_is_one_that_there_is():
    """Dotted names in backticks that begin as one of a figure, in any document."""
    names = documented("Runtime.stats()") | documented("tree.stats()")
    groups = {name.split(".")[0] for name in names if "." in name}
    parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}
    looked = 0
    for page in [DOCS / "metrics.md", DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        for name in re.findall(r"`([a-z_]+(?:\.(?:[a-z_]+|<[a-z]+>))+)`", page.read_text(encoding="utf-8")):
            if name.split(".")[0] in groups and not name.endswith((".md", ".py", ".pyx", ".pxd", ".bin", ".json")):
                looked += 1
                assert name in parts, f"{page.name} names {name}"
    assert looked > 100


def test_a_read_only_runtime_has_the_same_names(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("a", dims=2).insert(1, (0, 0))
    with xtree.Runtime(tmp_path / "index", mode="r") as runtime:
        assert names_of(runtime.stats()) == documented("Runtime.stats()")


def test_a_latency_counts_sums_and_sorts_into_buckets():
    latency = Latency()
    for seconds in (0.00005, 0.0001, 0.0002, 0.3, 99.0):
        latency.observe(seconds)
    found = latency.as_dict()
    assert (found["count"], found["max_seconds"]) == (5, 99.0)
    assert found["seconds"] == pytest.approx(99.30035)
    assert tuple(found["buckets"]) == BOUNDS_S
    assert [found["buckets"][bound] for bound in (0.0001, 0.00025, 0.25, 1.0, 10.0)] == [2, 3, 3, 4, 4]


def test_commits_are_counted_with_their_latency(runtime):
    before = runtime.stats()
    for i in range(20):
        runtime.tree("a").insert(i, (0, 0))
    after = runtime.stats()
    assert after["commit_latency"]["count"] - before["commit_latency"]["count"] == 20
    assert after["coordinator"]["commits"] - before["coordinator"]["commits"] == 20
    assert 0 < after["commit_latency"]["max_seconds"] <= after["commit_latency"]["seconds"]
    assert after["commit_latency"]["seconds"] >= after["coordinator"]["commit_seconds"] / 2
    assert max(after["commit_latency"]["buckets"].values()) == after["commit_latency"]["count"]
    assert after["durable_lag"] == 0 and after["epochs"]["lag"] == 0


def test_lags_count_epochs_behind_the_current_one(tmp_path):
    config = xtree.Config(durability="eventual", sync_interval_ms=3_600_000)
    with xtree.Runtime(tmp_path / "index", config=config) as runtime:
        tree = runtime.tree("a", dims=2)
        with tree.snapshot():
            for i in range(7):
                tree.insert(i, (0, 0))
            stats = runtime.stats()
            assert stats["epochs"]["lag"] == 7 and stats["epochs"]["pins"] == 1
            assert stats["durable_lag"] == 8        # with the commit that made the tree
        runtime.checkpoint()
        assert runtime.stats()["durable_lag"] == 0


def test_pages_without_a_slot_are_counted(runtime, monkeypatch):
    assert runtime.stats()["failures"] == {"allocations": 0, "handles": 0}

    def full(self, n):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    monkeypatch.setattr(File, "reserve", full)
    for _ in range(3):
        with pytest.raises(OSError):
            runtime.tree("a").insert_many(np.arange(20_000), np.random.default_rng(1).random((20_000, 2)))
    assert runtime.stats()["failures"] == {"allocations": 3, "handles": 0}
    monkeypatch.undo()
    runtime.tree("a").insert(1, (0, 0))
    assert runtime.stats()["failures"]["allocations"] == 3


def test_pages_without_a_handle_are_counted_apart_from_those_without_a_slot():
    found = set()
    for nth in range(1, 30):
        store = MemoryStore()
        write_set = begin(store)
        fail_allocation(nth)
        try:
            write_set.add_page(200, 0, b"")
        except MemoryError:
            failures = store.stats()["failures"]
            found.add((failures["allocations"], failures["handles"]))
        finally:
            fail_allocation(0)
        write_set.abort()
        store.check()
    assert found == {(1, 0), (0, 1), (0, 0)}        # the last: the list of the transaction's pages


def samples(registry) -> dict[tuple, float]:
    return {(s.name, *sorted(s.labels.items())): s.value for metric in registry.collect() for s in metric.samples}


def test_prometheus_gets_the_documented_metrics(runtime):
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(xtree.prometheus.Collector(runtime))
    where = ("path", runtime.path)
    found, stats = samples(registry), runtime.stats()
    assert found["xtree_commits_total", where] == stats["coordinator"]["commits"] == 2
    assert found["xtree_wal_syncs_total", where] == stats["coordinator"]["wal_syncs"]
    assert found["xtree_commit_latency_seconds_count", where] == 2
    assert found["xtree_commit_latency_seconds_bucket", ("le", "+Inf"), where] == 2
    assert found["xtree_commit_latency_seconds_bucket", ("le", "10.0"), where] == 2
    assert found["xtree_handles", where, ("state", "live")] == stats["object_table"]["live"]
    assert found["xtree_slots_used", ("page_bytes", "4096"), where] == stats["allocator"][0]["used"] > 0
    assert found["xtree_data_file_bytes", ("page_bytes", "4096"), where] == stats["data_files"]["bytes"]
    assert found["xtree_failed", where] == 0
    families = {re.sub("_(count|sum|bucket|created)$", "", name) for name, *_ in found}
    assert families == documented("Prometheus")
    text = prometheus_client.generate_latest(registry).decode()
    assert "# TYPE xtree_commits_total counter" in text and "# TYPE xtree_pins gauge" in text


def test_a_closed_or_forgotten_runtime_has_no_samples(tmp_path):
    runtimes = [xtree.Runtime(tmp_path / str(i)) for i in range(3)]
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    collector = xtree.prometheus.Collector(*runtimes[:2])
    collector.add(runtimes[2])
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(xtree.prometheus.Collector(runtimes[0]))
    paths = [runtime.path for runtime in runtimes]
    seen = [{dict(key[1:])["path"] for key in samples(registry)}]
    runtimes[0].close()
    seen.append({dict(key[1:])["path"] for key in samples(registry)})
    del runtimes[1]
    gc.collect()
    seen.append({dict(key[1:])["path"] for key in samples(registry)})
    runtimes[1].close()
    assert seen == [set(paths), set(paths[1:]), {paths[2]}]
    assert samples(registry) == {}
    registry.unregister(collector)
    registry.register(collector)


def test_a_failed_store_says_so(tmp_path, monkeypatch):
    with xtree.Runtime(tmp_path / "index") as runtime:
        registry = prometheus_client.CollectorRegistry()
        registry.register(xtree.prometheus.Collector(runtime))
        tree = runtime.tree("a", dims=2)

        def fail(self):
            raise SyncFailedError(errno.EIO, "a disk that is gone", self.path)

        monkeypatch.setattr(File, "sync", fail)
        with pytest.raises(OSError):
            tree.insert(1, (0, 0))
        assert samples(registry)["xtree_failed", ("path", runtime.path)] == 1
