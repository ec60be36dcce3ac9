"""Which pages of an epoch have been reached: a bit for each handle. For one thread at a time."""

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.pages.node_id cimport MAX_SHARDS, NodeID
from xtree.persistence.store.store cimport Store


@cython.final
cdef class ReachedPages:
    cdef Store store
    cdef uint64_t before[MAX_SHARDS + 1]    # handles given out in the shards before each, and in all
    cdef uint64_t *bits                     # shard by shard

    # Notes that a page was reached: 1 if it had been before, else 0. Raises CorruptionError for a handle that hadn't
    # been given out when this was made.
    cdef int reach(self, NodeID node) except -1 nogil
