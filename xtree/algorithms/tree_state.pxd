"""TreeState: what the catalog knows of one X-tree at one epoch, or a transaction's changing copy of it."""

from libc.stdint cimport uint64_t

from xtree.algorithms.bucket cimport Bucket, Geometry, KIND_DIRECTORY, KIND_LEAF
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store, resolve

cdef enum:
    MAX_LEVELS = 64                 # 2**63 records at three entries a page need fewer


cdef class TreeState:
    cdef Geometry g
    cdef NodeID root                # 0 for an empty tree
    cdef int levels                 # 0 empty, 1 the root is a leaf
    cdef uint64_t records
    cdef double *box                # 2 * dims: bounds of all records (by refresh_bounds), meaningful when records > 0
    cdef double leaf_fill           # how full bulk load packs leaves

    cdef int make_box(self) except -1
    cdef int refresh_bounds(self, Store store) except -1
    cdef int _require_consistent(self) except -1


cdef int raise_wrong_page(TreeState state, NodeID node, int level, const Bucket *b) except -1 with gil


cdef inline Bucket *resolve_bucket(Store store, TreeState state, NodeID node, int level) except NULL nogil:
    """Returns a page after checking what a descent relies on: its level, the kind for that level, the tree's dims.

    Raises CorruptionError.
    """
    cdef Bucket *b = <Bucket *>resolve(store, node)
    if b.level != level or b.dims != state.g.dims or b.kind != (KIND_DIRECTORY if level else KIND_LEAF):
        raise_wrong_page(state, node, level, b)
        return NULL
    return b
