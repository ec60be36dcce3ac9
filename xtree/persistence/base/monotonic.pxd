"""Clocks that never go back, in nanoseconds."""

from libc.stdint cimport uint64_t


cdef extern from "monotonic.h" nogil:
    uint64_t xt_monotonic_ns() noexcept     # a few milliseconds coarse, a few nanoseconds to read
    uint64_t xt_fine_ns() noexcept
