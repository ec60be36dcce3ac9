"""Sessions: the handles of one process on one store. docs: session.pxd."""

import errno
import os
from _thread import allocate_lock, get_ident

cimport cython
from cpython.weakref cimport PyWeakref_NewRef

from xtree.persistence.store.store cimport CLOSED, FORKED, Pin, Published, Store

from xtree.errors import ClosedError, LockedError, ReadOnlyError, TransactionError
from xtree.persistence.store.catalog import Catalog
from xtree.persistence.files.open_directory import DirectoryLostError

cdef Store AWAY = Store.__new__(Store)      # of a session that arrives in a pickle
AWAY.status = FORKED
AWAY.published = Published(0, Catalog())
cdef Store NO_STORE = Store.__new__(Store)
NO_STORE.status = CLOSED
NO_STORE.published = Published(0, Catalog())

# shares: read and written with the GIL. An entry is there as long as the lock is held; a thread that finds one that has
# ended waits for its close. turns: a thread that waits for a turn holds nothing and is in the middle of no other open.
cdef dict shares = {}               # identity of a lock file that is held -> SharedStore
cdef dict inherited_locks = {}      # the same -> what the parent process's writers took turns with
cdef dict turns = {}                # real path -> Turn
cdef dict opening = {}              # thread -> how many indexes it is in the middle of opening


@cython.final
cdef class Reading:
    """One reading call: it is in flight, and the epoch it reads is pinned, from __enter__ to __exit__."""

    cdef Session session
    cdef Store store
    cdef int slot
    cdef int flight

    def __cinit__(self, Session session not None):
        self.session = session

    def __enter__(self):
        cdef Store store = self.session.use()
        self.flight = store.enter()
        try:
            self.slot = store.epochs.pin()
        except BaseException:
            store.leave(self.flight)
            raise
        self.store = store
        return store, store.published

    def __exit__(self, *exception):
        self.store.epochs.unpin(self.slot)
        self.store.leave(self.flight)


@cython.final
cdef class Using:
    """One call that asks the store for something."""

    cdef Session session
    cdef Store store
    cdef int flight

    def __cinit__(self, Session session not None):
        self.session = session

    def __enter__(self):
        cdef Store store = self.session.use()
        self.flight = store.enter()
        self.store = store
        return store

    def __exit__(self, *exception):
        self.store.leave(self.flight)


cdef class Session:
    """What one handle may do, and with which store. Any thread may use it.

    store: its own one, in memory; that of a directory is joined. refusal: what a write is told; None when it may write.
    """

    def __init__(self, Store store=None, path=None, refusal=None, on_error=None, reopen=None):
        self.store = NO_STORE if store is None else store
        self.path = path
        self.refusal = refusal
        self.on_error = on_error
        self.reopen = reopen
        self.users = {}

    def current(self):
        """The store to be used now. Raises ClosedError."""
        return self.use()

    def read(self):
        """A context manager for one reading call: (store, its Published), with the epoch pinned. Raises ClosedError."""
        return Reading(self)

    def call(self):
        """A context manager for one call: the store. Raises ClosedError."""
        return Using(self)

    def pin(self):
        """Pins the current epoch until the Pin is released. Raises ClosedError, MemoryError."""
        cdef Store store
        while True:
            store = self.use()
            pin = Pin(store)
            if store.status < CLOSED:
                return pin
            pin.release()
            if self.store is store:             # else another one took its place meanwhile
                raise ClosedError(store.why_closed())

    def require_writable(self):
        """Raises ClosedError, ReadOnlyError or StoreFailedError unless it may write."""
        self.need_writable()

    cdef int need_writable(self) except -1:
        if not self.closed and self.refusal is not None:
            raise ReadOnlyError(self.refusal)
        if not self.closed and self.store.status == FORKED and self.reopen is not None:     # away
            raise ReadOnlyError(_of_the_parent(self.path))
        return self.use().need_writable()

    @property
    def read_only(self):
        """Whether it may not write, as far as that is known without opening anything."""
        return self.refusal is not None or self.is_away

    @property
    def is_closed(self):
        """Whether it can't be used any more."""
        return self.closed or self.store.status == CLOSED or (self.store.status == FORKED and self.reopen is None)

    @property
    def is_away(self):
        """Whether it came from another process, by a fork or a pickle, and wasn't used in this one yet."""
        return self.store.status == FORKED and self.reopen is not None

    def start_in_child(self):
        """Makes a session that has come from a parent process one that only reads."""
        self.refusal = _of_the_parent(self.path)

    def note_user(self, user not None):
        """Has close() call the user's `_cut_off()`."""
        self.note(user)

    def forget_user(self, user not None):
        """Forgets a user that has ended by itself."""
        self.forget(user)

    def close(self):
        """Ends the handle's transactions and snapshots and refuses calls; the last one closes the store. Idempotent.

        Raises what closing the store raises.
        """
        cdef Store store = self.store
        cdef SharedStore share = self.share
        interrupt = None
        self.closed = True
        self.store = NO_STORE
        try:
            self.cut_off(None)
        except BaseException as raised:         # an interrupt's: the rest is done first
            interrupt = raised
        try:
            if share is not None:
                share.leave(self)
                if not share.ended:
                    self.share = None           # the others' business
            elif store is not NO_STORE:
                store.close()
        except BaseException:
            if share is None and store.status < CLOSED:         # interrupted, and open again
                self.closed = False
                self.store = store
            raise
        if interrupt is not None:
            raise interrupt

    def cut_off(self, owner):
        """Ends the transactions and snapshots of one tree, or all for None."""
        interrupt = None
        for reference in list(self.users.values()):
            user = reference()
            if user is not None and (owner is None or user._is_of(owner)):
                try:
                    user._cut_off()
                except BaseException as raised:
                    interrupt = raised
        if interrupt is not None:
            raise interrupt

    def let_go(self):
        """Closes a session that nobody closed. If its directory is lost, which may be why, only the log tells."""
        try:
            self.close()
        except DirectoryLostError:
            pass

    def discard(self):
        """Closes it and, if nobody else had a session and the open has made the index, removes the index again."""
        cdef SharedStore share = self.share
        if share is not None and share.joined == 1 and not share.ended:
            share.ended = True
            try:
                share.store.discard()
            finally:
                self.close()
        else:
            self.close()

    cdef Store use(self):
        cdef Store store = self.store
        return self.look_again() if store.status >= CLOSED else store

    cdef Store look_again(self):
        if self.closed:
            raise ClosedError("the index is closed" if self.path is None else f"the index {self.path} is closed")
        if self.is_away:
            self.reopen(self)
        return self.store

    cdef int note(self, user) except -1:
        self.users[<size_t><void *>user] = PyWeakref_NewRef(user, None)
        return 0

    cdef void forget(self, user) noexcept:
        self.users.pop(<size_t><void *>user, None)


def arriving_session(path, reopen):
    """A session that came in a pickle: it reads, and its first use calls reopen(session), which has it join a store."""
    return Session(AWAY, path, f"the index {path} was pickled: where it arrives it is read", None, reopen)


def _of_the_parent(path):
    return (f"the index {path} was opened before a fork: a child process only reads through that handle, and opens the "
            "index again to write")


cdef class SharedStore:
    """The store of one directory, as long as this process has it open, and who uses it."""

    def __init__(self):
        self.sessions = set()
        self.former = []

    def open(self, Session session not None, open_store):
        """Takes charge of the store that open_store(on_error=…) opens, for a first session; others find it then."""
        store = open_store(on_error=self.report)
        self.store = store
        self.identity = store.identity
        if self.identity is not None:
            shares[self.identity] = self
            self.locks = inherited_locks.get(self.identity)
        store.when_closed = self.forget
        try:
            self.join(session)
        except BaseException:
            self.close()
            raise

    def join(self, Session session not None):
        """Adds a session that uses it; False when it has ended. Raises ClosedError for a session that was closed."""
        if session.closed:
            raise ClosedError(f"the index {session.path} is closed")
        if self.ended:
            return False
        session.share = self
        session.store = self.store
        self.sessions.add(session)
        self.joined += 1
        return True

    def make_writable(self, open_for_writing):
        """Replaces a store that only reads by the one that open_for_writing(store, on_error=…) gives.

        All sessions use the new one from now on. The old one is closed once nobody is left in it. Returns False when
        the old one is closed already and there is no new one. Raises LockedError when another thread is doing this.
        """
        cdef Session session
        cdef Store store, former = self.store
        if self.moving:             # by another path to the same directory: those of one path have turns
            raise LockedError(errno.EWOULDBLOCK, "another thread is opening the index to write", former.path)
        if not former.read_only:
            return True
        self.moving = True
        try:
            store = open_for_writing(former, on_error=self.report)
            if store is None:
                return False
            pin = store.pin()       # what the former one still shows is of this epoch
        finally:
            self.moving = False
        former.directory_lock = None    # it is the other's now
        self.store = store
        for session in self.sessions:
            session.store = store
        store.when_closed, former.when_closed = self.forget, None
        self.former.append(PyWeakref_NewRef(former, None))

        def end():
            try:
                former.close()
            finally:
                pin.release()

        former.when_unused(end)
        return True

    def leave(self, Session session not None):
        """Removes a session that has ended; the last one closes the store, and what that raises is raised."""
        self.sessions.discard(session)
        if self.sessions:
            return
        try:
            self.close()
        except BaseException:
            if self.store is not None and self.store.status < CLOSED:   # interrupted, and open again
                self.ended = False
                self.sessions.add(session)
                session.store = self.store
                session.closed = False
            raise

    def close(self):
        """Closes the store, whoever uses it. A second thread waits for the first."""
        cdef Store former
        self.ended = True
        try:
            for reference in list(self.former):
                former = reference()
                if former is not None:
                    former.close()
        finally:
            if self.store is not None:
                self.store.close()

    def forget(self):
        """Drops it from `shares`: the lock of its directory was released."""
        if shares.get(self.identity) is self:
            del shares[self.identity]

    def report(self, error):
        """Tells all sessions with an `on_error` of an error in the background."""
        cdef Session session
        failed = None
        for session in list(self.sessions):
            if session.on_error is not None:
                try:
                    session.on_error(error)
                except Exception as raised:     # a user's code: the others hear of it nevertheless
                    failed = raised
        if failed is not None:
            raise failed

    def locks_made_by(self, make):
        """What writers take turns with: one for all sessions."""
        if self.locks is None:
            made = make()
            if self.locks is None:
                self.locks = made
        return self.locks


def share_of(identity):
    """The SharedStore of the directory whose lock file this is; None when this process hasn't got it open."""
    return shares.get(identity)


@cython.final
cdef class Turn:
    """The turn to open the index at a path, for one thread at a time; never waited for where that could deadlock."""

    cdef str path
    cdef object lock
    cdef Py_ssize_t users           # who has it, and who wait for it
    cdef Turn taken                 # what __enter__ has taken: this one, or that of a thread which came first

    def __init__(self, str path not None):
        self.path = path
        self.lock = allocate_lock()

    def __enter__(self):
        cdef Turn turn = turns.setdefault(self.path, self)
        me = get_ident()
        turn.users += 1
        try:
            if not turn.lock.acquire(False):
                if me in opening:
                    raise TransactionError(f"opening {self.path} can't wait for another thread here: it was called in "
                                           "the middle of opening an index, by a finalizer, a signal handler or a "
                                           "callback")
                turn.lock.acquire()
        except BaseException:
            turn.end()
            raise
        self.taken = turn
        opening[me] = opening.get(me, 0) + 1

    def __exit__(self, *exception):
        cdef Turn turn = self.taken
        me = get_ident()
        opening[me] -= 1
        if not opening[me]:
            del opening[me]
        self.taken = None
        turn.lock.release()
        turn.end()

    cdef int end(self) except -1:
        self.users -= 1
        if not self.users and turns.get(self.path) is self:     # else it was a parent process's
            del turns[self.path]
        return 0


def _forked():
    """In a forked child: notes that nothing is open, and that nobody but this thread is opening anything."""
    cdef SharedStore share
    me = get_ident()
    depth = opening.get(me)
    for identity, share in shares.items():      # for handles of then, which find out by it when their tree is dropped
        if share.locks is not None:
            inherited_locks[identity] = share.locks
    shares.clear()
    turns.clear()
    opening.clear()
    if depth:
        opening[me] = depth


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
