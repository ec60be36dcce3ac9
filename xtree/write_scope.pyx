"""Writing: one tree's writer lock, and the scope of a transaction from `with` to its end.

Invariants
  1. A writer lock is held from before a scope's write set begins until that write set is queued, so a scope changes the
     state of the tree that was queued last. It depends on the write set that queued that state: when that one fails, it
     fails too. The lock of a tree that is made or dropped is held until the outcome is known: nobody builds on a tree
     that may never exist, and the handles of a dropped tree have ended before its name is free.
  2. No exception that arrives in between, not even a KeyboardInterrupt, leaves a lock held. That is why this file is
     compiled: no signal handler runs between two statements of a compiled function, only inside the Python code that it
     calls, and from there an interrupt comes as an exception, which is handled here.
  3. One thread at a time is inside a scope. A call of a second one is refused; __exit__, abort and commit wait.
  4. After an error that may have left pages half-changed a scope is doomed: it can only be aborted.
  5. What was begun in a parent process is over in a forked child: no lock is held there, and no scope goes on.
  6. Nothing waits, and no scope begins or commits, while its thread holds what others wait for (lock_ranks.pxd): the
     call comes from garbage collection or a signal handler then. An abort gives its pages back later if need be.
"""

cimport cython

import threading
import time

from cpython.weakref cimport PyWeakref_NewRef

from xtree.persistence.base.forks cimport forks_seen
from xtree.persistence.base.lock_ranks cimport FREE, held, refusal, require_free
from xtree.persistence.session cimport Session
from xtree.persistence.store.store cimport Store
from xtree.persistence.store.write_set cimport begin as begin_write_set

from xtree.errors import ClosedError, TransactionError
from xtree.roots import entry_of, decode_state

cdef object get_ident = threading.get_ident
cdef object monotonic = time.monotonic
cdef double LONGEST_WAIT_S = threading.TIMEOUT_MAX


@cython.final
@cython.no_gc
cdef class Tip:
    """What a scope has queued; the next writer of one of its trees builds on it. Empty once the scope has ended."""

    # Set by the scope before it gives its locks back, emptied at its end. The next holder of one of those locks takes
    # the write set first and looks at its status. When there is none, it takes the published catalog, which holds all
    # the changes or none. Protected by the GIL.
    cdef object write_set
    cdef dict changes               # name -> entry

    def __cinit__(self, write_set, dict changes):
        self.write_set = write_set
        self.changes = changes


@cython.final
cdef class WriterLock:
    """Lets one writer at a time change a tree, and knows which thread that is."""

    cdef readonly str name
    # Set by the holder before it gives the lock back; read with the GIL, after `published`. A new tree of the same name
    # is made under another lock, and so after this is set: no handle ever sees a tree that is not its own.
    cdef readonly bint dropped      # the tree is gone for good, or was never made: another lock has the name
    cdef Tip tip                    # of the scope that had it last; None or empty: ask the catalog
    cdef object table               # a weak reference to the WriterLocks
    cdef dict holding               # that of the table
    cdef object lock
    cdef object holder              # the thread that took it
    cdef int forks                  # forks_seen() at that time; in a process forked later there is no holder
    cdef object handles             # a weak reference to the tree's handle; a tuple of several sessions' ones

    def __init__(self, WriterLocks locks not None, str name not None):
        self.name = name
        self.table = PyWeakref_NewRef(locks, None)
        self.holding = locks.holding
        self.lock = threading.Lock()
        self.forks = forks_seen()

    # Compiled, so that two threads that ask for a tree at the same time get one handle without a lock.

    def get_handle(self, Session session not None):
        """The handle of the tree in a session, as long as somebody holds it; else None."""
        for reference in self.references():
            handle = reference()
            if handle is not None and handle._session is session:
                return handle
        return None

    def set_handle(self, handle not None, before):
        """Makes `handle` its session's handle in place of `before`, unless there is another; returns the one in use."""
        present = self.get_handle(handle._session)
        if present is not None and present is not before:
            return present
        reference = PyWeakref_NewRef(handle, None)
        others = [other for other in self.references() if other() is not None and other() is not present]
        self.handles = (reference, *others) if others else reference
        return handle

    cdef tuple references(self):
        if self.handles is None:
            return ()
        return self.handles if isinstance(self.handles, tuple) else (self.handles,)

    cdef int refresh(self) except -1:
        """Frees the lock at its first use in a forked child, where nobody holds it."""
        cdef WriterLocks table
        if self.forks != forks_seen():
            table = self.table()
            if table is not None and table.forks != forks_seen():
                table.forks = forks_seen()
                table.holding.clear()
            self.lock = threading.Lock()
            self.holder = self.tip = None
            self.forks = forks_seen()
        return 0

    cdef int take(self, object deadline, bint wait) except -1:
        """Takes the lock. Raises TransactionError where it could wait for ever, TimeoutError, ClosedError."""
        me = get_ident()
        self.refresh()
        if not self.lock.acquire(False):
            if self.holder == me:
                raise TransactionError(f"this thread is in a transaction on tree {self.name!r} already: use that one, "
                                       "or end it first")
            if not wait:
                raise TransactionError(f"tree {self.name!r} is being written by another thread, and waiting inside a "
                                       "transaction could last for ever: use Runtime.transaction(trees=[...])")
            if not self.lock.acquire(True, left_until(deadline)):
                raise TimeoutError(f"tree {self.name!r} is still being written by another transaction")
        try:
            self.holding[me] = self.holding.get(me, 0) + 1
        except BaseException:
            self.lock.release()
            raise
        self.holder = me
        if self.dropped:
            self.give_back()
            raise ClosedError(f"tree {self.name!r} was dropped")
        return 0

    cdef int give_back(self) except -1:
        holder = self.holder
        self.holder = None
        if self.holding[holder] == 1:
            del self.holding[holder]
        else:
            self.holding[holder] -= 1
        self.lock.release()
        return 0

    cdef int retire(self) except -1:
        """Notes that its tree is gone for good; the holder calls this before it gives the lock back."""
        cdef WriterLocks table = self.table()
        self.dropped = True
        if table is not None and table.by_name.get(self.name) is self:
            del table.by_name[self.name]
        return 0


@cython.final
cdef class WriterLocks:
    """The writer locks of a store: of trees that exist, and of those that are being made.

    `holding` counts for each thread how many of these locks it holds: one that begins with some waits for no more, and
    one scope takes its locks in the order of their names, so that no two threads can wait for each other.
    """

    cdef dict by_name
    cdef dict holding
    cdef int forks                  # forks_seen() when `holding` was filled
    cdef object __weakref__

    def __init__(self):
        self.by_name = {}
        self.holding = {}
        self.forks = forks_seen()

    def of(self, str name not None):
        """The lock of a name; one is made if need be."""
        lock = self.by_name.get(name)
        return self.by_name.setdefault(name, WriterLock(self, name)) if lock is None else lock

    def __len__(self):
        return len(self.by_name)

    def held_here(self, str name not None):
        """Whether the calling thread has the lock of a name."""
        cdef WriterLock lock = self.by_name.get(name)
        if lock is not None:
            lock.refresh()
        return lock is not None and lock.holder == get_ident()


cdef object entry_to_change(WriterLock lock, Store store, write_set):
    """The entry of a tree that a write set is going to change: queued, or else published. Its lock must be held."""
    cdef Tip tip = lock.tip
    if tip is not None and tip.write_set is not None:
        before, changes = tip.write_set, tip.changes
        if before.status == "queued":
            write_set.depend_on(before)
            return changes[lock.name]
    lock.tip = None
    # Not the write set's base, which may be older: nobody but the lock's holder retires this tree's pages.
    return store.published.catalog.get(lock.name)


cdef double left_until(object deadline) except? -1.0:
    """Seconds until a deadline, as Lock.acquire takes them: -1 is for ever."""
    if deadline is None:
        return -1.0
    return min(max(deadline - monotonic(), 0.0), LONGEST_WAIT_S)


def write_alone(Session session not None, WriterLock lock not None, handle, function, *arguments):
    """function(write_set, state, *arguments), which changes a tree, as a transaction of its own."""
    cdef WriteScope scope = WriteScope(session, (lock,), handle)
    scope.begin()
    try:
        result = scope.run(True, lock.name, function, arguments)
    except BaseException:
        scope.finish(False, False)
        raise
    scope.finish(True, False)
    return result


cdef class WriteScope:
    """Some trees' writer locks and a write set, from __enter__ to __exit__: commits there, aborts on an exception.

    session: that of the handle it is made with; closing the handle ends the scope.

    locks: the WriterLock of each tree to change, in the order of their names. handle: something whose `require_open()`
    raises once the scope may not go on, or None. timeout: seconds to wait for locks and for room in the log; with None
    it waits for ever for locks, and for room as long as the store says. owner: kept alive as long as the scope lasts; a
    scope that has ended keeps nothing of the store. made: the states of trees to make if nothing has their names; the
    locks of these are among `locks`.
    """

    cdef Session session
    cdef Store store                # None before it begins
    cdef int forks                  # forks_seen() when it began
    cdef bint cut_off               # its handle was closed before it ended
    cdef object handle
    cdef object timeout
    cdef tuple locks
    cdef dict made                  # name -> state, or None
    cdef list held
    cdef object turn_lock           # a lock, taken by the thread that is inside
    cdef object inside              # which thread that is
    cdef object write_set
    cdef dict states                # name -> TreeState as this scope has changed it
    cdef dict entries               # name -> entry that the state comes from, None for a tree that is made
    cdef dict dropped               # name -> None for each tree that is dropped; None when there are none
    cdef Tip tip                    # all changes, once they are queued; a tree that is dropped has None there
    cdef readonly str status        # "new", "open", "committed", "aborted", "failed": the outcome is unknown
    cdef object doom                # the error that doomed it
    cdef readonly object _owner     # the handle that it was made with, kept until it ends
    cdef object __weakref__

    def __init__(self, Session session not None, tuple locks not None, handle=None, timeout=None, owner=None,
                 dict made=None):
        self.session = session
        self.locks = locks
        self.handle = handle
        self.timeout = timeout
        self._owner = owner
        self.made = made
        self.held = []
        self.turn_lock = threading.Lock()
        self.states = {}
        self.entries = {}
        self.status = "new"

    def __del__(self):
        # The scope was never ended. Its pages are given back before its locks, whose next holder may change the same.
        if self.session is not None:
            self.session.forget(self)
        if self.held and self.forks == forks_seen():
            if self.write_set is not None and self.write_set.status == "open":
                self.write_set.abort()
            self.give_locks_back()

    def __enter__(self):
        self.begin()
        self.session.note(self)
        if self.session.closed or (self.handle is not None and self.handle.handle_is_closed):
            self._cut_off()
        return self

    def __exit__(self, kind, error, traceback):
        self.finish(kind is None, False)

    def abort(self):
        """Forgets everything this transaction has changed and ends it. Does nothing when it has ended already."""
        self.finish(False, False)

    def commit(self):
        """Makes the changes the next epoch, before the end of the block."""
        self.finish(True, True)

    def _is_of(self, owner):
        """Whether it was made with this handle."""
        return self._owner is owner

    def _cut_off(self):
        """Aborts the scope: its handle is closed. A call that is running goes on to its end; later ones are refused."""
        self.cut_off = True
        try:
            self.finish(False, False)
        except TransactionError:        # it is inside one of its own calls, or may not wait
            pass

    @property
    def _base_epoch(self):
        """The epoch that this transaction builds on. Raises TransactionError unless it is open."""
        self.require_usable()
        return self.write_set.base.epoch

    def _read_tree(self, str name not None, function, *arguments):
        """function(store, state, *arguments) on a tree as this scope has changed it."""
        return self.run(False, name, function, arguments)

    def _write_tree(self, str name not None, function, *arguments):
        """function(write_set, state, *arguments), which changes a tree. Whatever it raises dooms the scope."""
        return self.run(True, name, function, arguments)

    def _touch(self, WriterLock lock not None):
        """Adds a tree, if that is possible without waiting. Raises TransactionError, KeyError."""
        require_free("a transaction")
        self.enter_turn()
        try:
            self.require_usable()
            if lock.name in self.states:
                return
            lock.take(None, False)
            self.held.append(lock)
            self.add(lock)
        finally:
            self.leave_turn()

    def _make(self, WriterLock lock not None, state):
        """Makes a tree with the commit, if that is possible without waiting. Raises TransactionError, ValueError."""
        cdef WriterLock taken
        require_free("a transaction")
        self.enter_turn()
        try:
            self.require_usable()
            if lock.name not in self.states:
                lock.take(None, False)
                self.held.append(lock)
                if self.store.published.catalog.get(lock.name) is None:
                    self.entries[lock.name] = None
                    self.states[lock.name] = state
                    return
                taken = self.held.pop()
                taken.give_back()
            raise ValueError(f"there is something of the name {lock.name!r} already")
        finally:
            self.leave_turn()

    def _drop(self, str name not None):
        """Drops a tree with the commit. Its pages were retired before."""
        self.require_usable()
        self.states.pop(name, None)
        if self.dropped is None:
            self.dropped = {}
        self.dropped[name] = None

    cdef int begin(self) except -1:
        require_free("a write")
        if self.status != "new":
            raise TransactionError(f"the transaction is {self.status}; a new one is needed")
        try:
            self.open()
        except BaseException:
            self.let_go("aborted")
            raise
        return 0

    cdef int open(self) except -1:
        """Takes the locks in order, then begins."""
        cdef WriterLock lock
        self.session.require_writable()
        self.store = self.session.use()
        self.forks = forks_seen()
        deadline = None if self.timeout is None else monotonic() + self.timeout
        self.store.wait_for_room(self.timeout)
        wait = True
        for lock in self.locks:
            lock.refresh()
            if not self.held:
                wait = get_ident() not in lock.holding
            lock.take(deadline, wait)
            self.held.append(lock)
        if self.handle is not None:
            self.handle.require_open()
        self.write_set = begin_write_set(self.store)
        for lock in self.locks:
            self.add(lock)
        self.status = "open"
        return 0

    cdef int add(self, WriterLock lock) except -1:
        entry = entry_to_change(lock, self.store, self.write_set)
        self.entries[lock.name] = entry
        if entry is not None:
            self.states[lock.name] = decode_state(entry).copy()
        elif self.made is not None and lock.name in self.made:
            self.states[lock.name] = self.made[lock.name]
        else:
            raise KeyError(lock.name)
        return 0

    cdef object run(self, bint writes, str name, function, tuple arguments):
        cdef int flight
        cdef Store store
        if writes:
            require_free("a write")
        self.enter_turn()
        try:
            self.require_usable()
            state = self.states[name]
            store = self.store
            flight = store.enter()
            try:
                return function(self.write_set if writes else store, state, *arguments)
            except BaseException as error:
                if writes or isinstance(error, (OSError, MemoryError)):
                    self.doom = error
                raise
            finally:
                store.leave(flight)
        finally:
            self.leave_turn()

    cdef int enter_turn(self) except -1:
        if not self.turn_lock.acquire(False):
            raise TransactionError("the transaction is in use by another call; it is for one thread at a time")
        self.inside = get_ident()
        return 0

    cdef int leave_turn(self) except -1:
        self.inside = None
        self.turn_lock.release()
        return 0

    cdef int require_usable(self) except -1:
        if self.status == "new":
            raise TransactionError("the transaction hasn't begun: use it in a with statement")
        self.require_attached()
        if self.status != "open":
            raise TransactionError(f"the transaction is {self.status}")
        if self.doom is not None:
            raise TransactionError(f"the transaction has failed and can only be aborted: {self.doom!r}") from self.doom
        if self.handle is not None:
            self.handle.require_open()
        return 0

    cdef int require_attached(self) except -1:
        """Raises ClosedError once its session was closed, TransactionError in a process that was forked since."""
        if self.cut_off:
            raise ClosedError("the transaction was aborted when its tree or index was closed")
        if self.forks != forks_seen():
            raise TransactionError("the transaction was open when this process was forked: it is the parent's")
        return 0

    cdef int finish(self, bint commit, bint must_be_open) except -1:
        """Ends the scope, if it hasn't ended. An interrupt that arrives meanwhile is raised after that."""
        if self.forks != forks_seen() and self.status != "new":
            if self.status == "open":
                self.held = []
                self.status = "aborted"
                self.forget()
                if commit:
                    self.require_attached()
            return 0
        if self.inside == get_ident():
            raise TransactionError("a transaction can't be ended from inside one of its own calls")
        interrupt = self.wait_for_turn()
        self.inside = get_ident()       # for a signal handler that ends it once more, in the middle of this
        try:
            if self.status == "open":
                try:
                    if commit:
                        self.commit_changes()
                finally:
                    self.let_go("aborted")
            elif commit and self.cut_off:
                self.require_attached()
            elif must_be_open:
                raise TransactionError(f"the transaction is {self.status}")
        finally:
            self.leave_turn()
        if interrupt is not None:
            raise interrupt
        return 0

    cdef object wait_for_turn(self):
        """Waits until no thread is inside; returns the exception of a signal that arrived meanwhile."""
        interrupt = None
        if held() != FREE:
            if not self.turn_lock.acquire(False):
                raise refusal("the end of a transaction that another thread is using")
            return None
        while True:
            try:
                self.turn_lock.acquire()
                return interrupt
            except BaseException as arrived:
                interrupt = arrived

    cdef int commit_changes(self) except -1:
        if self.doom is not None:
            raise TransactionError(f"the transaction has failed and was aborted: {self.doom!r}") from self.doom
        require_free("a commit")
        self.require_attached()
        if self.handle is not None:
            self.handle.require_open()
        self.store.require_writable()
        changes = {} if self.dropped is None else dict(self.dropped)
        for name, state in self.states.items():
            before = self.entries[name]
            root = state.root
            if before is None:
                changes[name] = entry_of(name, state)
            elif root != before.root:
                changes[name] = before.followed_by(root, state.encode(), state)
        if changes:
            self.tip = Tip(self.write_set, changes)
            self.write_set.commit(changes, self.let_others_begin)
        else:
            self.write_set.abort()
            self.status = "committed"
        return 0

    def let_others_begin(self):
        """Called once the changes are queued: gives the locks back, and leaves the next holders what they build on.

        The locks of trees that the scope makes or drops stay held: there is nothing to build on.
        """
        cdef WriterLock lock
        cdef Py_ssize_t i
        for i in range(len(self.held) - 1, -1, -1):
            lock = self.held[i]
            if self.entries.get(lock.name, lock) is not None and not self.drops(lock):
                if lock.name in self.tip.changes:
                    lock.tip = self.tip
                del self.held[i]
                lock.give_back()

    cdef int let_go(self, str outcome) except -1:
        """The end: the write set closed, the outcome noted, the locks given back."""
        try:
            if self.write_set is not None:
                if self.write_set.status == "open":
                    self.write_set.abort()
                elif self.write_set.status != "aborted":
                    outcome = self.write_set.status
        finally:
            if self.status != "committed":
                self.status = outcome
            try:
                self.give_locks_back()
            finally:
                self.forget()
        return 0

    cdef bint drops(self, WriterLock lock) except -1:
        return self.dropped is not None and lock.name in self.dropped

    cdef void forget(self) noexcept:
        """Drops all that an ended scope doesn't need, and what the next writers had from it while it was queued."""
        if self.tip is not None:
            self.tip.write_set = self.tip.changes = None
        self.tip = None
        self.write_set = self.doom = self.handle = None
        self.states = self.entries = self.made = self.dropped = None
        self.locks = ()
        self.store = None
        if self.session is not None:
            self.session.forget(self)
        self.session = None
        self._owner = None          # last: it may be what kept the index open

    cdef int give_locks_back(self) except -1:
        """Gives the held locks back. Before that, retires those whose tree is gone, or was not made after all."""
        cdef WriterLock lock
        cdef bint committed = self.status == "committed"
        while self.held:
            lock = self.held.pop()
            if self.drops(lock):
                gone = committed
            else:
                gone = not committed and self.entries.get(lock.name, lock) is None
            if gone:
                lock.retire()
            lock.give_back()
        return 0
