"""Prometheus: the figures of runtimes as metrics.

Needs prometheus_client: `pip install 'xtree-index[prometheus]'`. A process serves the figures on a port of its own by::

    from prometheus_client import REGISTRY, start_http_server
    REGISTRY.register(xtree.prometheus.Collector(runtime))
    start_http_server(9100)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector as BaseCollector

from xtree.errors import ClosedError
from xtree.persistence.base.config import PAGE_BYTES
from xtree.runtime import Runtime

__all__ = ["Collector"]

Stats = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One metric without labels of its own: its name, its help text, and where its value stands in Runtime.stats()."""

    name: str  # ends in _total for a counter
    help: str
    value: Callable[[Stats], float]


METRICS = (
    Metric("xtree_commits_total", "Commits.", lambda s: s["coordinator"]["commits"]),
    Metric("xtree_commit_groups_total", "Groups of commits that shared a frame.", lambda s: s["coordinator"]["groups"]),
    Metric("xtree_wal_syncs_total", "Syncs of the log.", lambda s: s["coordinator"]["wal_syncs"]),
    Metric("xtree_wal_bytes_total", "Bytes of frames appended to the log.", lambda s: s["coordinator"]["wal_bytes"]),
    Metric("xtree_checkpoints_total", "Checkpoints taken.", lambda s: s["coordinator"]["checkpoints"]),
    Metric(
        "xtree_checkpoint_seconds_total",
        "Seconds that checkpoints took.",
        lambda s: s["coordinator"]["checkpoint_seconds"],
    ),
    Metric(
        "xtree_checkpoint_failures_total",
        "Checkpoints that failed.",
        lambda s: s["coordinator"]["checkpoint_failures"],
    ),
    Metric(
        "xtree_allocation_failures_total",
        "Pages for which there was no slot: a full disk, no memory.",
        lambda s: s["failures"]["allocations"],
    ),
    Metric(
        "xtree_handle_failures_total",
        "Pages for which there was no handle.",
        lambda s: s["failures"]["handles"],
    ),
    Metric("xtree_failed", "1 once the store takes no more writes.", lambda s: float(s["state"] == "poisoned")),
    Metric("xtree_epoch", "The current epoch.", lambda s: s["epoch"]),
    Metric("xtree_roots", "Trees and other structures.", lambda s: s["roots"]),
    Metric("xtree_epoch_lag", "Epochs by which the oldest pin lags.", lambda s: s["epochs"]["lag"]),
    Metric("xtree_durable_lag", "Epochs that a power loss would take.", lambda s: s["durable_lag"]),
    Metric("xtree_pins", "Snapshots, transactions and calls that pin an epoch.", lambda s: s["epochs"]["pins"]),
    Metric("xtree_oldest_pin_seconds", "Age of the oldest pin.", lambda s: s["epochs"]["oldest_pin_seconds"]),
    Metric("xtree_log_bytes", "Bytes of the log in use.", lambda s: s["coordinator"]["log_bytes"]),
    Metric("xtree_waiting_commits", "Commits that wait for their outcome.", lambda s: s["coordinator"]["waiting"]),
    Metric("xtree_recovery_seconds", "Seconds that the open took to recover.", lambda s: s["recovery"]["seconds"]),
    Metric("xtree_recovery_frames", "Frames that the open replayed.", lambda s: s["recovery"]["frames"]),
    Metric("xtree_recovery_records", "Page records that the open replayed.", lambda s: s["recovery"]["deltas"]),
    Metric("xtree_windows", "Windows, one for each data file.", lambda s: s["windows"]["windows"]),
    Metric("xtree_windows_mapped", "Windows that are mapped.", lambda s: s["windows"]["mapped"]),
    Metric("xtree_windows_mapped_bytes", "Address space of mapped windows.", lambda s: s["windows"]["reserved_bytes"]),
)


class Collector(BaseCollector):
    """A collector for `registry.register`: the figures of some runtimes, each labelled with the `path` of its runtime.

    It doesn't keep a runtime open; one that is closed or forgotten has no samples any more. A registry takes one
    collector of this kind: give the collector all runtimes, at once or later with `add`.
    """

    def __init__(self, *runtimes: Runtime) -> None:
        self._runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet(runtimes)

    def add(self, runtime: Runtime) -> None:
        """Adds a runtime."""
        self._runtimes.add(runtime)

    def describe(self) -> Iterator[Any]:
        """The metrics without samples."""
        return self._families({})

    def collect(self) -> Iterator[Any]:
        """The metrics, with current figures."""
        return self._families(self._figures())

    def _figures(self) -> dict[str, Stats]:
        figures = {}
        for runtime in list(self._runtimes):
            try:
                figures[runtime.path] = runtime.stats()
            except ClosedError:
                continue
        return figures

    def _families(self, figures: dict[str, Stats]) -> Iterator[Any]:
        for metric in METRICS:
            kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=["path"])
            for path, stats in figures.items():
                family.add_metric([path], metric.value(stats))
            yield family
        yield self._latency(figures)
        yield from self._by_page_size(figures)
        yield self._handles(figures)

    def _latency(self, figures: dict[str, Stats]) -> Any:
        family = HistogramMetricFamily("xtree_commit_latency_seconds", "How long commits took.", labels=["path"])
        for path, stats in figures.items():
            latency = stats["commit_latency"]
            buckets = [(str(bound), count) for bound, count in latency["buckets"].items()]
            family.add_metric([path], [*buckets, ("+Inf", latency["count"])], latency["seconds"])
        return family

    def _by_page_size(self, figures: dict[str, Stats]) -> Iterator[Any]:
        labels = ["path", "page_bytes"]
        slots = GaugeMetricFamily("xtree_slots", "Room for pages in data files, by page size.", labels=labels)
        used = GaugeMetricFamily("xtree_slots_used", "Pages that take room in data files.", labels=labels)
        size = GaugeMetricFamily("xtree_data_file_bytes", "Bytes of data files, by page size.", labels=labels)
        for path, stats in figures.items():
            for size_class, of_class in stats["allocator"].items():
                slots.add_metric([path, str(PAGE_BYTES[size_class])], of_class["slots"])
                used.add_metric([path, str(PAGE_BYTES[size_class])], of_class["used"])
            for size_class, of_class in stats["data_files"]["by_class"].items():
                size.add_metric([path, str(PAGE_BYTES[size_class])], of_class["bytes"])
        yield from (slots, used, size)

    def _handles(self, figures: dict[str, Stats]) -> Any:
        family = GaugeMetricFamily("xtree_handles", "Handles of pages, by state.", labels=["path", "state"])
        for path, stats in figures.items():
            for state in ("live", "reserved", "retired", "free"):
                family.add_metric([path, state], stats["object_table"][state])
        return family
