"""One record: insertion, removal and replacement without arrays. docs: one_record.pxd."""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.updates.removal cimport touches_side


cdef class RecordWriter:

    def __cinit__(self, WriteSet ws not None, TreeState state not None):
        self.ws = ws
        self.state = state
        self.inserter = Inserter(ws, state)

    cdef int carry_out(self, const Change *change) except -1:
        cdef bint before
        if change.dims != self.state.g.dims:
            raise ValueError(f"got a box of {change.dims} dims, expected {self.state.g.dims}")
        if change.what == INSERT:
            return self.insert(change.box, change.id)
        if change.what == REPLACE:
            if not self.remove(change.box, change.id):
                return 0
            return self.insert(change.new_box, change.id)
        before, self.ws.spends_reserve = self.ws.spends_reserve, True
        try:
            return self.remove(change.box, change.id)
        finally:
            self.ws.spends_reserve = before

    cdef int insert(self, const double *box, int64_t id) except -1:
        self.ws.begin_with_gil()
        try:
            self.inserter.insert(box, <uint64_t>id, 0, 0)
        finally:
            self.ws.end_with_gil()
        self.state.records += 1
        return 1

    cdef int remove(self, const double *box, int64_t id) except -1:
        """Removes a record; the tree's bounds shrink only if it touched them."""
        if self.remover is None:
            self.remover = Remover(self.ws, self.state, self.inserter)
        if not remove_with_gil(self.remover, box, <uint64_t>id):
            return 0
        if self.state.root == 0 or touches_side(self.state.box, box, self.state.g.dims):
            self.state.refresh_bounds(self.ws.store)
        return 1


cdef int remove_with_gil(Remover remover, const double *box, uint64_t ref) except -1 nogil:
    """Called with the GIL. A long search gives it away; so it is taken back here, before anything else needs it."""
    remover.ws.begin_with_gil()
    try:
        return remover.remove(box, ref)
    finally:
        remover.ws.end_with_gil()
