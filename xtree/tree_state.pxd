"""TreeState: what the catalog knows of one X-tree at one epoch, or a transaction's changing copy of it."""

from libc.stdint cimport uint64_t

from xtree.bucket cimport Bucket, Geometry, MAX_DIMS
from xtree.persistence.node_id cimport NodeID
from xtree.persistence.store cimport Store


cdef class TreeState:
    cdef Geometry g
    cdef NodeID root                # 0 for an empty tree
    cdef int levels                 # 0 empty, 1 the root is a leaf
    cdef uint64_t records
    cdef double box[2 * MAX_DIMS]   # bounds of all records; meaningful when records > 0. Set by refresh_bounds.
    cdef double leaf_fill           # of bulk loads

    cdef int refresh_bounds(self, Store store) except -1


# Resolves a page and checks what a descent relies on: its level, its kind for that level, the tree's dims.
# Raises CorruptionError.
cdef Bucket *resolve_bucket(Store store, const TreeState state, NodeID node, int level) except NULL nogil
