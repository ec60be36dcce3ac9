"""Metrics: figures that are kept while work is done. docs/metrics.md explains every name."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Any

__all__ = ["BOUNDS_S", "Latency"]

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)


class Latency:
    """How long something took: number, sum, longest, and a histogram with fixed bounds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._longest = 0.0
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def observe(self, seconds: float) -> None:
        """Counts one more."""
        with self._lock:
            self._seconds += seconds
            if seconds > self._longest:
                self._longest = seconds
            self._counts[bisect_left(BOUNDS_S, seconds)] += 1

    def as_dict(self) -> dict[str, Any]:
        """count, seconds, max_seconds, and buckets: how many took at most so many seconds, for each bound."""
        with self._lock:
            counts, so_far = self._counts, 0
            buckets = {}
            for bound, count in zip(BOUNDS_S, counts):
                so_far += count
                buckets[bound] = so_far
            return {
                "count": sum(counts),
                "seconds": self._seconds,
                "max_seconds": self._longest,
                "buckets": buckets,
            }
