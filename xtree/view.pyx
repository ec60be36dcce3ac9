"""View: the way from a tree's handle to its state at the current epoch. It is compiled to be fast."""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.math cimport INFINITY
from libc.stdint cimport UINT64_MAX, uint64_t

from xtree.algorithms.bucket cimport MAX_DIMS
from xtree.input.conversion cimport read_plain_box, read_plain_point
from xtree.algorithms.queries.nearest cimport nearest_of_one
from xtree.persistence.base.right_of_way cimport let_commits_pass
from xtree.persistence.session cimport Session
from xtree.persistence.store.store cimport Published, Store
from xtree.algorithms.queries.search cimport count_of_one, ids_of_one
from xtree.algorithms.tree_state cimport TreeState
from xtree.algorithms.queries.walk cimport AROUND, INSIDE, INTERSECTS, Predicate
from xtree.writer_lock cimport Handle, WriterLock

from xtree.errors import ClosedError
from xtree.roots import decode_state
from xtree.writer_lock import WriterLocks


cdef inline bint _read_predicate(object name, Predicate *predicate):
    predicate[0] = INTERSECTS
    if name == "intersects":
        return True
    if name == "contains" or name == "covers":
        predicate[0] = INSIDE
    elif name == "within" or name == "covered_by":
        predicate[0] = AROUND
    else:
        return False
    return True


@cython.final
@cython.no_gc
cdef class Seen:
    """A tree's state at an epoch. Immutable. It doesn't hold that epoch's Published, which keeps all trees' entries."""

    cdef uint64_t epoch
    cdef TreeState state            # None in NOTHING

    def __cinit__(self, uint64_t epoch, TreeState state):
        self.epoch = epoch
        self.state = state


cdef Seen NOTHING = Seen(UINT64_MAX, None)      # no epoch has this number


cdef void end(Store store, int flight, int slot) noexcept:
    if slot >= 0:
        store.epochs.unpin(slot)
    store.leave(flight)


@cython.final
cdef class TreeView(Handle):
    """One tree of a session's store, read at the epoch that is current when a call begins. Any thread may use it."""

    cdef readonly Session session
    cdef WriterLock lock            # the tree's, which says whether it was dropped
    cdef bint arriving              # in a pickle: the lock is replaced by that of the store, once this is open
    # One pointer to an epoch and the state at it, so that the GIL alone is enough to read both.
    cdef Seen seen                  # what the last call has found; replaced whole

    def __init__(self, Session session not None, WriterLock lock not None, int dims=0):
        """dims: of a tree that arrives in a pickle, whose state is looked at when it is used; 0: looks at it now."""
        self.session = session
        self.lock = lock
        self.seen = NOTHING
        self.dims = dims
        self.arriving = dims > 0
        if not self.arriving:
            self.run(self._note_dims)

    def run(self, function, *arguments):
        """function(store, state, *arguments), with the state pinned meanwhile. Raises ClosedError."""
        cdef int flight = -1, slot = -1
        cdef Store store = self.session.use()
        cdef TreeState state = self.begin(store, &flight, &slot)
        try:
            return function(store, state, *arguments)
        finally:
            end(store, flight, slot)

    # These answer for one box or point in a form that needs no conversion, with valid arguments. For any others they
    # return None.

    def query_plain(self, box, predicate):
        """The ids of the records that one box fulfils a predicate with, int64 (k,)."""
        return self.ask(box, predicate, False)

    def count_plain(self, box, predicate):
        """How many records one box fulfils a predicate with."""
        return self.ask(box, predicate, True)

    def nearest_plain(self, point, k, max_distance):
        """The k nearest records of one point: (ids int64 (n,), distances float64 (n,)). max_distance None: no limit."""
        cdef double row[2 * MAX_DIMS]
        cdef double limit = INFINITY
        cdef int overflow = 0
        cdef long long most
        cdef int flight, slot = -1
        cdef Store store
        cdef TreeState state
        if not PyLong_CheckExact(k) or not read_plain_point(point, self.dims, row):
            return None
        most = PyLong_AsLongLongAndOverflow(k, &overflow)
        if type(max_distance) is float:
            limit = max_distance
        elif max_distance is not None:
            return None
        if overflow or most < 1 or not limit >= 0.0:
            return None
        store = self.session.use()
        state = self.begin(store, &flight, &slot)
        try:
            return nearest_of_one(store, state, row, most, limit)
        finally:
            end(store, flight, slot)

    def state_at(self, Published published not None):
        """The tree's state at an epoch that is pinned. Raises ClosedError."""
        if self.arriving and self.session.share is not None:
            self.lock = self.session.share.locks_made_by(WriterLocks).of(self.lock.name)
            self.arriving = False
        self.need_open()
        entry = published.catalog.get(self.lock.name)
        if entry is None:
            raise ClosedError(f"tree {self.lock.name!r} was dropped")
        state = decode_state(entry)
        if self.dims and state.dims != self.dims:
            raise ClosedError(f"tree {self.lock.name!r} was dropped, and made anew with {state.dims} dims")
        self.seen = Seen(published.epoch, state)
        if self.closed:             # meanwhile, by another thread
            self.seen = NOTHING
        return state

    def require_open(self):
        """Raises ClosedError when the handle was closed or its tree dropped."""
        self.need_open()

    cdef int need_open(self) except -1:
        if self.closed:
            raise ClosedError(f"tree {self.lock.name!r} is closed")
        if self.lock.dropped:
            raise ClosedError(f"tree {self.lock.name!r} was dropped")
        if self.session.closed:
            self.session.use()
        return 0

    def close(self):
        """Refuses calls from now on; those running finish. Idempotent."""
        self.closed = True
        self.seen = NOTHING

    @property
    def is_closed(self):
        """Whether calls are refused, whatever the reason."""
        return self.closed or self.lock.dropped or self.session.is_closed

    @property
    def handle_is_closed(self):
        """Whether its close() or that of its session was called."""
        return self.was_closed()

    cdef bint was_closed(self) noexcept:
        return self.closed or self.session.closed

    cdef object ask(self, box, predicate, bint counting):
        cdef double bounds[2 * MAX_DIMS]
        cdef Predicate which
        cdef int flight, slot = -1
        cdef Store store
        cdef TreeState state
        if not _read_predicate(predicate, &which) or not read_plain_box(box, self.dims, bounds):
            return None
        store = self.session.use()
        state = self.begin(store, &flight, &slot)
        try:
            if counting:
                return count_of_one(store, state, bounds, which)
            return ids_of_one(store, state, bounds, which)
        finally:
            end(store, flight, slot)

    cdef TreeState begin(self, Store store, int *flight, int *slot):
        """Marks a call in flight, pins the current epoch, and gives the tree's state at it."""
        cdef Published published
        cdef Seen seen
        let_commits_pass()
        flight[0] = store.enter()
        try:
            slot[0] = store.epochs.pin()
            published = store.published
            seen = self.seen
            if seen.epoch == published.epoch:
                return seen.state
            return self.state_at(published)
        except BaseException:
            end(store, flight[0], slot[0])
            raise

    def _note_dims(self, store, TreeState state):
        self.dims = state.g.dims
