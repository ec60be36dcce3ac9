"""Memory for Cython code: tests can count blocks, and make the n-th allocation fail."""

from libc.stdint cimport UINT64_MAX, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

from xtree.persistence.base.atomics cimport fetch_add, load_relaxed, store_seq

cdef extern from "prefault.h" nogil:
    void xt_prefault(void *start, size_t bytes) noexcept

# Nothing is counted unless a test watches: otherwise all threads that allocate would write to one shared cache line.
# The test writes these, and then every thread that allocates does, with atomic adds: so exactly one allocation fails.
cdef uint64_t watched = 0
cdef uint64_t countdown = 0     # allocations still allowed before one fails; 0 means no failure is planned
cdef uint64_t allocations = 0
cdef uint64_t live = 0          # blocks allocated less blocks released

cdef enum:
    LINE_BYTES = 64


cdef bint _fails() noexcept nogil:
    if not load_relaxed(&watched):
        return False
    fetch_add(&allocations, 1)
    return load_relaxed(&countdown) != 0 and fetch_add(&countdown, <uint64_t>-1) == 1


cdef void *_counted(void *block) noexcept nogil:
    if block != NULL and load_relaxed(&watched):
        fetch_add(&live, 1)
    return block


cdef void *allocate(size_t size) noexcept nogil:
    return NULL if _fails() else _counted(malloc(size if size else 1))


cdef void *allocate_zeroed(size_t count, size_t size) noexcept nogil:
    return NULL if _fails() else _counted(calloc(count if count else 1, size))


cdef void *reallocate(void *block, size_t size) noexcept nogil:
    if block == NULL:
        return allocate(size)
    return NULL if _fails() else realloc(block, size if size else 1)


cdef void release(void *block) noexcept nogil:
    if block != NULL and load_relaxed(&watched):
        fetch_add(&live, <uint64_t>-1)
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


def watch_allocations(bint on):
    """Turns the counting of allocations on or off. Cancels a planned failure."""
    store_seq(&countdown, 0)
    store_seq(&watched, on)


def fail_allocation(uint64_t n):
    """Makes the n-th allocation from now on return NULL, once, and turns counting on. 0 cancels a planned failure.

    Returns how many allocations were left until the failure that was planned before; 0 when it has happened.
    """
    cdef uint64_t left = load_relaxed(&countdown)
    if n:
        store_seq(&watched, 1)
    store_seq(&countdown, n)
    return left if left < UINT64_MAX // 2 else 0     # threads may have counted on after it had happened


def allocation_count():
    """Allocations asked for while they were counted."""
    return load_relaxed(&allocations)


def live_allocations():
    """Blocks allocated less blocks released while they were counted; negative when older ones have been released."""
    return <int64_t>load_relaxed(&live)
