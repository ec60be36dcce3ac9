"""View: what other compiled modules use of it."""

cimport cython
from libc.stdint cimport uint64_t

from xtree.algorithms.tree_state cimport TreeState
from xtree.persistence.session cimport Session
from xtree.persistence.store.store cimport Store
from xtree.writer_lock cimport WriterLock


@cython.final
@cython.no_gc
cdef class Seen:
    cdef uint64_t epoch
    cdef TreeState state            # None in NOTHING


@cython.final
cdef class TreeView:
    cdef readonly Session session
    cdef readonly int dims
    cdef WriterLock lock            # the tree's, which says whether it was dropped
    cdef bint arriving              # in a pickle: the lock is replaced by that of the store, once this is open
    cdef bint closed
    # One pointer to an epoch and the state at it, so that the GIL alone is enough to read both.
    cdef Seen seen                  # what the last call has found; replaced whole

    # Raises ClosedError when the handle was closed or its tree dropped.
    cdef int need_open(self) except -1
    cdef object ask(self, box, predicate, bint counting)
    cdef TreeState begin(self, Store store, int *flight, int *slot)
