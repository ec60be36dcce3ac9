"""Removal of records from an X-tree: exact match, then condense on the way up.

One Remover belongs to one transaction, and to one thread at a time.
"""

cimport cython
from libc.stdint cimport uint64_t

from xtree.algorithms.bucket cimport Bucket, Geometry
from xtree.algorithms.updates.insertion cimport Inserter
from xtree.persistence.store.store cimport Store
from xtree.persistence.store.write_set cimport WriteSet
from xtree.algorithms.tree_state cimport TreeState

# A page other than the root that holds fewer entries, and has siblings, is dissolved.
cdef double least_entries(const Geometry *g, const Bucket *b) noexcept nogil
# Whether a box inside another reaches one of its sides, so that the other may shrink without it.
cdef bint touches_side(const double *box, const double *inner, int dims) noexcept nogil


@cython.final
cdef class Remover:
    cdef WriteSet ws
    cdef Store store
    cdef TreeState state
    cdef Inserter inserter          # puts orphans back; its path is the one to what is removed
    cdef uint64_t *orphans          # entries of dissolved pages, ORPHAN_WORDS + 2 * dims words each
    cdef Py_ssize_t orphan_count, orphan_room
    cdef uint64_t visits            # pages looked at
    cdef uint64_t most_visits       # more mean that a page is reached twice
    cdef uint64_t long_from         # from so many visits on the search for a record is a long one

    # Removes one copy of a record, and counts it. Returns 1 if there was one. The tree's bounds stay as they were.
    # After an error the transaction must abort.
    cdef int remove(self, const double *box, uint64_t ref) except -1 nogil

    cdef int find(self, const double *box, uint64_t ref) except -1 nogil
    cdef int find_below(self, int level, const double *box, uint64_t ref) except -1 nogil
    cdef int find_in(self, Bucket *b, int entry, const double *box, uint64_t ref) except -1 nogil
    cdef int find_elsewhere(self, Bucket *b, int tried, const double *box, uint64_t ref,
                            const double *region) except -1 nogil
    cdef int get_region(self, int level, double *region) except -1 nogil
    cdef int make_path_writable(self) except -1 nogil
    cdef int condense(self, const double *box) except -1 nogil
    cdef int keep_orphans(self, Bucket *b) except -1 nogil
    cdef int reinsert_orphans(self) except -1 nogil
    cdef int lower_root(self) except -1 nogil
