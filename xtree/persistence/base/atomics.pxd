"""Atomic operations on 64-bit words, by memory order (atomics.h)."""

from libc.stdint cimport uint64_t


cdef extern from "atomics.h" nogil:
    uint64_t load_relaxed "xt_load_relaxed"(const uint64_t *p) noexcept
    uint64_t load_acquire "xt_load_acquire"(const uint64_t *p) noexcept
    uint64_t load_seq "xt_load_seq"(const uint64_t *p) noexcept
    void store_relaxed "xt_store_relaxed"(uint64_t *p, uint64_t value) noexcept
    void store_release "xt_store_release"(uint64_t *p, uint64_t value) noexcept
    void store_seq "xt_store_seq"(uint64_t *p, uint64_t value) noexcept
    bint compare_exchange "xt_compare_exchange"(uint64_t *p, uint64_t expected, uint64_t desired) noexcept
    uint64_t fetch_or "xt_fetch_or"(uint64_t *p, uint64_t bits) noexcept
    uint64_t fetch_add "xt_fetch_add"(uint64_t *p, uint64_t n) noexcept
