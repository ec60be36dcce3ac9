"""Memory for Cython code, with a countdown that makes the n-th allocation fail."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

from xtree.persistence.atomics cimport fetch_add, load_relaxed, store_seq

cdef extern from "prefault.h" nogil:
    void xt_prefault(void *start, size_t bytes) noexcept

# Allocations still allowed before one fails; 0 means no failure is planned. Written by the test that plans
# one, counted down by whichever thread allocates (an atomic add, so that exactly one allocation fails).
cdef uint64_t countdown = 0
cdef uint64_t allocations = 0

cdef enum:
    LINE_BYTES = 64


cdef bint _fails() noexcept nogil:
    fetch_add(&allocations, 1)
    if load_relaxed(&countdown) == 0:
        return False
    return fetch_add(&countdown, <uint64_t>-1) == 1


cdef void *allocate(size_t size) noexcept nogil:
    return NULL if _fails() else malloc(size if size else 1)


cdef void *allocate_zeroed(size_t count, size_t size) noexcept nogil:
    return NULL if _fails() else calloc(count if count else 1, size)


cdef void *reallocate(void *block, size_t size) noexcept nogil:
    return NULL if _fails() else realloc(block, size if size else 1)


cdef void release(void *block) noexcept nogil:
    free(block)


cdef void *allocate_lines(size_t count) noexcept nogil:
    # The block's own address stands in the 8 bytes before the first line.
    cdef char *block = <char *>allocate_zeroed(count + 1, LINE_BYTES)
    cdef char *lines
    if block == NULL:
        return NULL
    lines = block + LINE_BYTES - (<size_t>block & (LINE_BYTES - 1))
    (<void **>(lines - sizeof(void *)))[0] = block
    return lines


cdef void release_lines(void *lines) noexcept nogil:
    if lines != NULL:
        release((<void **>(<char *>lines - sizeof(void *)))[0])


cdef void prefault(void *start, size_t bytes) noexcept nogil:
    xt_prefault(start, bytes)


def fail_allocation(uint64_t n):
    """Make the n-th allocation from now on return NULL, once. 0 cancels a planned failure."""
    store_seq(&countdown, n)


def allocation_count():
    """Allocations asked for since the module was loaded."""
    return load_relaxed(&allocations)
