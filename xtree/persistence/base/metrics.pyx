"""Metrics: figures that are kept while work is done. docs/metrics.md explains every name."""

cimport cython

__all__ = ["BOUNDS_S", "Latency"]

BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)

cdef enum:
    BUCKETS = 14                # one more than there are bounds

cdef double[BUCKETS - 1] bounds
bounds = BOUNDS_S
assert len(BOUNDS_S) == BUCKETS - 1


@cython.final
cdef class Latency:
    """How long something took: number, sum, longest, and a histogram with fixed bounds.

    Thread-safe: it is compiled, so that nothing runs between two steps of a method. It takes no lock, since a signal
    handler that asks for the figures could find its own thread holding it.
    """

    cdef double seconds
    cdef double longest
    cdef unsigned long long[BUCKETS] counts

    def observe(self, double seconds):
        """Counts one more that took so many seconds."""
        cdef int bucket = 0
        while bucket < BUCKETS - 1 and bounds[bucket] < seconds:
            bucket += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)
        self.counts[bucket] += 1

    def as_dict(self):
        """count, seconds, max_seconds, and buckets: for each bound, how many took at most so many seconds."""
        cdef unsigned long long[BUCKETS] counts = self.counts
        cdef unsigned long long so_far = 0
        cdef double seconds = self.seconds, longest = self.longest
        cdef int bucket
        cdef dict buckets = {}
        for bucket in range(BUCKETS - 1):
            so_far += counts[bucket]
            buckets[BOUNDS_S[bucket]] = so_far
        return {
            "count": so_far + counts[BUCKETS - 1],
            "seconds": seconds,
            "max_seconds": longest,
            "buckets": buckets,
        }
