"""Benchmark of what happens in memory: resolving a NodeID, allocating and freeing a slot."""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from xtree.persistence.base.config import PAGE_BYTES
from xtree.persistence.pages.object_table import ObjectTable
from xtree.persistence.store.memory_store import MemoryStore
from xtree.tools.bench.report import Report, require
from xtree.tools.probes import loops

if TYPE_CHECKING:
    from collections.abc import Callable

    from xtree.tools.bench.substrate import Scale

__all__ = ["measure_memory"]

KIND = 200  # of pages that no tree has
ONE_SHARD = 1 << 30  # rows, before a second shard begins
SLOTS_HELD = 256  # by probes.replace_slots
TURNS = 9  # of the ways to resolve, in each round: they differ by little


def measure_memory(report: Report, scale: Scale) -> None:
    """NodeID lookups in random order beside a bare array of pointers, and one slot freed and allocated, by class."""
    report.section("resolve: NodeID to pointer, random order, without the GIL")
    for count in scale.nodes:
        _measure_resolve(report, count, scale.rounds)
    report.section("allocator: free and allocate one slot of 256 that are held")
    for size_class, size in enumerate(PAGE_BYTES):
        _measure_allocator(report, size_class, size, scale)


def make_nodes(store: MemoryStore, count: int) -> tuple[np.ndarray, np.ndarray]:
    """NodeIDs and addresses of so many live pages, none of which is touched."""
    nodes = np.empty(count, np.uint64)
    addresses = np.empty(count, np.uint64)
    for i in range(count):
        addresses[i] = address = store.allocator.allocate_slot(0)
        nodes[i] = node = store.table.reserve_node(KIND, 0, address)
        store.table.publish_node(node, 1)
    return nodes, addresses


def _measure_resolve(report: Report, count: int, rounds: int) -> None:
    store = MemoryStore(ObjectTable(ONE_SHARD))
    try:
        nodes, addresses = make_nodes(store, count)
        pages = np.empty(count, np.uint64)
        loops.pages_at(store.windows, addresses, pages)
        order = np.random.default_rng(count).permutation(count).astype(np.uint64)
        shuffled = nodes[order]
        plain = loops.PlainStore(store, nodes)
        expected = int(pages.sum())
        ways: dict[str, Callable[[], int]] = {
            f"array of {count:,} pointers": lambda: loops.look_up_all(pages, order),
            f"table of {count:,} without shards": lambda: loops.resolve_all_plainly(plain, shuffled),
            f"resolve, {count:,} nodes, one shard": lambda: loops.resolve_all(store, shuffled),
        }
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(TURNS * rounds + 1):
            for name, way in ways.items():
                started = perf_counter_ns()
                total = way()
                samples[name].append((perf_counter_ns() - started) / count)
                require(total == expected, f"{name}: the pages are {total:#x} in all, expected {expected:#x}")
        figures = [report.add("resolve", name, "ns", taken[1:]) for name, taken in list(samples.items())[:2]]
        name, taken = list(samples.items())[2]
        report.add("resolve", name, "ns", taken[1:], against=figures)
    finally:
        store.close()


def _measure_allocator(report: Report, size_class: int, size: int, scale: Scale) -> None:
    store = MemoryStore()
    try:
        places = np.random.default_rng(size_class).integers(0, SLOTS_HELD, scale.allocations).astype(np.uint64)
        samples = []
        for _ in range(scale.rounds + 1):
            started = perf_counter_ns()
            held = loops.replace_slots(store.allocator, size_class, places)
            samples.append((perf_counter_ns() - started) / len(places))
            require(held == SLOTS_HELD, f"{held} slots of {size} bytes are held, expected {SLOTS_HELD}")
        store.allocator.check()
        require(store.allocator.slots_used == 0, f"{store.allocator.slots_used} slots are still in use")
        report.add("allocator", f"{size >> 10} KiB", "ns", samples[1:])
    finally:
        store.close()
