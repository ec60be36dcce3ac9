"""One record: its insertion, removal or replacement, which is over in microseconds.

It runs with the GIL: to give that away and take it back costs as much as the work, and where other threads want it, far
more. Only what may take long does without: a wait for the store's lock, and a search for a record in many pages.
A page that is not in the cache of the system is read from the disk with the GIL; batches read theirs without.
"""

cimport cython
from libc.stdint cimport int64_t

from xtree.algorithms.kernels.box cimport MAX_DIMS
from xtree.algorithms.tree_state cimport TreeState
from xtree.algorithms.updates.insertion cimport Inserter
from xtree.algorithms.updates.removal cimport Remover
from xtree.persistence.store.write_set cimport WriteSet

cpdef enum:
    INSERT = 0
    DELETE = 1
    REPLACE = 2


cdef struct Change:
    int what                        # INSERT, DELETE or REPLACE
    int dims
    int64_t id
    double box[2 * MAX_DIMS]        # of the record that is inserted or removed; finite
    double new_box[2 * MAX_DIMS]    # of the one that takes its place


@cython.final
cdef class RecordWriter:
    """One transaction's way of changing single records of one tree. Keeps its working memory between them."""

    cdef WriteSet ws
    cdef TreeState state
    cdef Inserter inserter
    cdef Remover remover            # None until a record is removed

    # Carries a change out; returns whether its record was there, for an insertion 1. Raises what a change of many
    # records raises, ValueError for other dims than the tree's; after any error the transaction must abort.
    cdef int carry_out(self, const Change *change) except -1

    cdef int insert(self, const double *box, int64_t id) except -1
    cdef int remove(self, const double *box, int64_t id) except -1
