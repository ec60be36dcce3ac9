"""The store: pages named by NodeIDs, changed by copy-on-write, made visible commit by commit.

A reader pins, takes the root from the published catalog, and resolves NodeIDs to pointers, without the GIL and
without a lock. A writer collects its new pages in a WriteSet and hands them over with new catalog entries.

Pointers are borrowed: from a pin until its end for published pages; for pages of a WriteSet until the next call
that may reserve, since that may map windows but never moves a page. Keep NodeIDs, not pointers.
"""

from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.mmap_windows cimport Windows
from xtree.persistence.mvcc cimport Epochs
from xtree.persistence.node_id cimport NodeID, handle_of
from xtree.persistence.object_table cimport ObjectTable, Row, WORD_TAG, WORD_VERIFIED
from xtree.persistence.atomics cimport load_acquire, load_relaxed
from xtree.persistence.page cimport PageVerifier
from xtree.persistence.segment_allocator cimport SegmentAllocator


# Tells every store how to judge pages of a kind. Called once at import by the structure that owns the kind.
cdef int register_kind(int kind, PageVerifier verifier) except -1


cdef class Store:
    cdef readonly ObjectTable table
    cdef readonly Epochs epochs
    cdef readonly Windows windows
    cdef readonly SegmentAllocator allocator
    cdef PyThread_type_lock lock    # guards table lists, allocator, row changes; never taken while waiting for the GIL
    cdef public object published    # Published: replaced whole by the publisher, with the GIL
    cdef public object state        # "open", "poisoned", "closed", "forked"

    # The slow half of resolve: maps a window, verifies a page at its first touch, raises CorruptionError.
    cdef char *resolve_slowly(self, NodeID node) except NULL nogil


cdef inline char *resolve(Store store, NodeID node) except NULL nogil:
    """The page of a NodeID, as a pointer to its first byte. Raises CorruptionError."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef uint64_t word
    cdef char *page
    if row != NULL:
        word = load_acquire(&row.word)
        if (word & (WORD_VERIFIED | WORD_TAG)) == (WORD_VERIFIED | (node & WORD_TAG)):
            page = store.windows.pointer(load_relaxed(&row.address))
            if page != NULL:
                return page
    return store.resolve_slowly(node)


cdef class WriteSet:
    """The pages one transaction has made and retired. One thread at a time; all methods below run without the GIL."""

    cdef readonly Store store
    cdef NodeID *made               # in the order of their reservation; those since abandoned are skipped by tag
    cdef Py_ssize_t made_count, made_room
    cdef NodeID *retired            # published pages this transaction replaces or removes
    cdef Py_ssize_t retired_count, retired_room
    cdef readonly uint64_t bytes_made   # of all pages made and not abandoned
    cdef int pin                    # protects the base epoch
    cdef readonly object base       # the Published this transaction builds on
    cdef readonly object status     # "open", "queued", "committed", "aborted"

    # A new page: zeroed but for its prefix (magic, format, kind, size class, own NodeID). Raises OSError, MemoryError.
    cdef char *reserve(self, int kind, int size_class, NodeID *node) except NULL nogil
    # The page as this transaction may change it: itself when this transaction made it, else a copy under a new NodeID,
    # with the old one retired. `node` is updated.
    cdef char *writable(self, NodeID *node) except NULL nogil
    # Removes a page: a published one is retired at the commit, one of this transaction returns at once.
    cdef int retire(self, NodeID node) except -1 nogil
    # Whether this transaction made the page.
    cdef bint made_here(self, NodeID node) noexcept nogil
