"""WriteSet: the pages that one transaction makes and retires, and their way into an epoch.

One thread at a time. The cdef methods run without the GIL, and must: they wait for the store's lock. Nobody else sees
what they change before the commit: rows of reserved pages can only be reached from pages of the same transaction.
"""

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.node_id cimport NodeID
from xtree.persistence.store cimport Published, Store


@cython.final
cdef class WriteSet:

    cdef readonly Store store
    cdef NodeID *made               # in the order of their reservation; 0 for those since given back
    cdef Py_ssize_t made_count, made_room
    cdef NodeID *retired            # published pages that this transaction replaces or removes
    cdef Py_ssize_t retired_count, retired_room
    cdef readonly uint64_t bytes_made   # of all pages made and not given back
    cdef int pin                    # protects the base epoch; -1 when released
    cdef readonly Published base    # what this transaction builds on
    cdef readonly str status        # "open", "queued", "committed", "aborted", "failed" (poisoned, outcome unknown)
    cdef object __weakref__

    # A new page: zeroed but for its prefix (magic, format, kind, size class, own NodeID). Raises OSError, MemoryError.
    cdef char *reserve(self, int kind, int size_class, NodeID *node) except NULL nogil
    # The page as this transaction may change it: itself when this transaction made it, else a copy under a new NodeID,
    # with the old one retired. `node` is updated.
    cdef char *writable(self, NodeID *node) except NULL nogil
    # Removes a page: a published one is retired at the commit, one of this transaction returns at once.
    cdef int retire(self, NodeID node) except -1 nogil
    # Whether this transaction made the page (a reserved page can only be reached by the transaction that made it).
    cdef bint made_here(self, NodeID node) noexcept nogil
    cdef int claim(self, NodeID node) except -1 nogil
    cdef char *take(self, int kind, int size_class, NodeID *node) except NULL nogil
    cdef int grow(self, NodeID **list_, Py_ssize_t *room, Py_ssize_t count) except -1 nogil
    cdef int seal_all(self) except -1 nogil
    cdef int give_all_back(self) except -1 nogil
    cdef int require_open(self) except -1
    cdef void release_pin(self) noexcept
