"""Probes: the inner loops of `xtree bench substrate`, without the GIL and without Python between two steps.

Each returns what it computed, so that a measurement can be held against another way to the same result.
"""

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.atomics cimport load_acquire, load_relaxed, store_release
from xtree.persistence.memory cimport allocate_zeroed, release
from xtree.persistence.mmap_windows cimport Windows
from xtree.persistence.node_id cimport NodeID, handle_of
from xtree.persistence.object_table cimport MAX_SLABS, SLAB_BITS, SLAB_ROWS, WORD_TAG, WORD_VERIFIED, Row, likely
from xtree.persistence.segment_allocator cimport SegmentAllocator
from xtree.persistence.store cimport Store, resolve


@cython.final
cdef class PlainTable:
    """A table of rows with one directory of slabs and nothing above it.

    The rows are those of a store, at the addresses where the store has them, so that both read the same cache lines.
    Only nodes of the first shard have a place in it.
    """

    cdef uint64_t *slabs
    cdef uint64_t high_water

    def __cinit__(self, Store store, const NodeID[::1] nodes):
        cdef Py_ssize_t i
        cdef uint64_t handle
        cdef Row *row
        self.slabs = NULL
        self.high_water = 0
        self.slabs = <uint64_t *>allocate_zeroed(MAX_SLABS, sizeof(uint64_t))
        if self.slabs == NULL:
            raise MemoryError("no memory for a directory of slabs")
        for i in range(nodes.shape[0]):
            handle = handle_of(nodes[i])
            row = store.table.row(handle)
            if row == NULL or handle >= <uint64_t>MAX_SLABS << SLAB_BITS:
                raise ValueError(f"node {nodes[i]:#x} has no row in the first shard")
            store_release(&self.slabs[handle >> SLAB_BITS], <uint64_t>(row - (handle & (SLAB_ROWS - 1))))
            self.high_water = max(self.high_water, handle + 1)

    def __dealloc__(self):
        release(self.slabs)

    cdef inline Row *row(self, uint64_t handle) noexcept nogil:
        if likely(handle - 1 < load_acquire(&self.high_water) - 1):
            return <Row *>load_acquire(&self.slabs[handle >> SLAB_BITS]) + (handle & (SLAB_ROWS - 1))
        return NULL


@cython.final
cdef class PlainStore:
    """A store as far as a lookup goes, over a table that has no shards: what they cost is the difference."""

    cdef PlainTable table
    cdef Windows windows

    def __init__(self, Store store not None, const NodeID[::1] nodes):
        self.table = PlainTable(store, nodes)
        self.windows = store.windows


cdef char *_not_there() except NULL with gil:
    raise ValueError("a node that isn't there, or whose page was never verified")


cdef inline char *_resolve_plainly(PlainStore store, NodeID node) except NULL nogil:
    """store.resolve over a plain table, whose pages are all mapped and verified."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef uint64_t word
    cdef char *page
    if likely(row != NULL):
        word = load_acquire(&row.word)
        if likely((word & (WORD_VERIFIED | WORD_TAG)) == (WORD_VERIFIED | (node & WORD_TAG))):
            page = store.windows.pointer(load_relaxed(&row.address))
            if likely(page != NULL):
                return page
    return _not_there()


def pages_at(Windows windows, const uint64_t[::1] addresses, uint64_t[::1] pages):
    """Fills in where the page of each address is in memory."""
    cdef Py_ssize_t i
    if pages.shape[0] != addresses.shape[0]:
        raise ValueError(f"got {pages.shape[0]} places for {addresses.shape[0]} addresses")
    for i in range(addresses.shape[0]):
        pages[i] = <uint64_t>windows.pointer(addresses[i])
        if pages[i] == 0:
            raise ValueError(f"address {addresses[i]:#x} isn't mapped")


def resolve_all(Store store, const NodeID[::1] nodes):
    """Resolves each node by the store; the sum of the pages' places in memory."""
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(nodes.shape[0]):
            total += <uint64_t>resolve(store, nodes[i])
    return total


def resolve_all_plainly(PlainStore store not None, const NodeID[::1] nodes):
    """The same by a table without shards."""
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(nodes.shape[0]):
            total += <uint64_t>_resolve_plainly(store, nodes[i])
    return total


def look_up_all(const uint64_t[::1] pages, const uint64_t[::1] order):
    """The same by an array of pointers, in the order of the indices given: the least that a lookup can cost."""
    cdef uint64_t total = 0, count = pages.shape[0]
    cdef Py_ssize_t i
    with nogil:
        for i in range(order.shape[0]):
            if order[i] < count:
                total += pages[order[i]]
    return total


def replace_slots(SegmentAllocator allocator, int size_class, const uint64_t[::1] places):
    """Frees and allocates one slot for each element of `places`, below 256, of 256 that are held meanwhile.

    Returns how many different addresses were held in the end: 256 when all is well. The allocator is nobody else's
    meanwhile, and all slots are given back.
    """
    cdef uint64_t held[256]
    cdef Py_ssize_t i, taken = 0
    try:
        for i in range(256):
            allocator.allocate(size_class, &held[i])
            taken += 1
        with nogil:
            for i in range(places.shape[0]):
                allocator.free(held[places[i] & 255])
                allocator.allocate(size_class, &held[places[i] & 255])
        return len({held[i] for i in range(256)})
    finally:
        for i in range(taken):
            allocator.free(held[i])
