"""The scope of a transaction, from `with` to its end, and of a change that is one by itself.

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

from _thread import allocate_lock
from time import monotonic

from xtree.algorithms.tree_state cimport TreeState
from xtree.algorithms.updates.one_record cimport Change, REPLACE, RecordWriter
from xtree.input.conversion cimport read_id, read_stored_box
from xtree.persistence.base.forks cimport forks_seen
from xtree.persistence.base.lock_ranks cimport FREE, held, refusal, require_free
from xtree.persistence.base.right_of_way cimport let_queries_pass
from xtree.persistence.session cimport Session
from xtree.persistence.store.catalog cimport CatalogEntry
from xtree.persistence.store.store cimport PyThread_get_thread_ident, Store
from xtree.persistence.store.write_set cimport WriteSet, begin as begin_write_set
from xtree.writer_lock cimport Handle, Tip, WriterLock

from xtree.errors import ClosedError, TransactionError
from xtree.roots import decode_state, entry_of


@cython.final
cdef class Part:
    """One tree in a scope: its writer lock, what the tree was, and what has become of it."""

    cdef WriterLock lock
    cdef bint holds_lock
    cdef bint missing               # nothing has the name: the tree is made, or can't be found
    cdef bint dropped
    cdef CatalogEntry entry         # that the state comes from; None when there was none, or before it was looked for
    cdef object state               # as the scope has changed it; None before it was looked for, or once it is dropped
    cdef RecordWriter records       # None until a single record is changed

    def __cinit__(self, WriterLock lock not None):
        self.lock = lock

    cdef int carry_out(self, WriteSet write_set, const Change *change) except -1:
        if self.records is None:
            self.records = RecordWriter(write_set, <TreeState?>self.state)
        return self.records.carry_out(change)

    cdef bint is_new(self) noexcept:
        """Whether there is nothing to build on for the next one, until the outcome is known."""
        return self.missing or self.dropped

    cdef CatalogEntry entry_after(self):
        """The entry that publishes the state; None when the tree hasn't changed."""
        cdef TreeState tree
        if self.missing:
            return entry_of(self.lock.name, self.state)
        if isinstance(self.state, TreeState):
            tree = self.state
            return None if tree.root == self.entry.root else self.entry.followed_by(tree.root, tree.encode(), tree)
        if self.state.root == self.entry.root:
            return None
        return self.entry.followed_by(self.state.root, self.state.encode(), self.state)

    cdef int give_lock_back(self, bint committed) except -1:
        """Gives the lock back. Before that, retires it when its tree is gone, or was not made after all."""
        self.holds_lock = False
        if committed if self.dropped else self.missing and not committed:
            self.lock.retire()
        return self.lock.give_back()


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


cdef object copy_of_state(CatalogEntry entry):
    """The state of an entry, which may be changed. Raises what decode_state does."""
    if isinstance(entry.decoded, TreeState):
        return (<TreeState>entry.decoded).copy()
    return decode_state(entry).copy()


cdef int read_change(Change *change, int what, int dims, id, box, new_box) except -1:
    """Reads what a change of one record is given. Raises TypeError, DimensionError, InvalidBoxError, OverflowError."""
    change.what = what
    change.dims = dims
    change.id = read_id(id)
    read_stored_box(box, dims, change.box)
    if what == REPLACE:
        read_stored_box(new_box, dims, change.new_box)
    return 0


def write_alone(Session session not None, WriterLock lock not None, Handle handle, function, *arguments):
    """function(write_set, state, *arguments), which changes a tree, as a transaction of its own."""
    return run_alone(session, lock, handle, function, arguments, NULL)


def write_one_alone(Session session not None, WriterLock lock not None, Handle handle not None, int what, id, box,
                    new_box=None):
    """Changes one record, as a transaction of its own; returns whether it was there. what, …: TreeScope._write_one."""
    cdef Change change
    read_change(&change, what, handle.dims, id, box, new_box)
    result = run_alone(session, lock, handle, None, (), &change)
    let_queries_pass()
    return result


cdef object run_alone(Session session, WriterLock lock, Handle handle, function, tuple arguments,
                      const Change *change):
    """A scope that nobody but this function knows: it has no bell, and its session doesn't note it."""
    cdef WriteScope scope = WriteScope.__new__(WriteScope)
    scope.session = session
    scope.locks = (lock,)
    scope.handle = handle
    scope.status = "new"
    scope.begin()
    try:
        result = scope.run(True, lock.name, function, arguments, change)
    except BaseException:
        scope.finish(False, False)
        raise
    scope.finish(True, False)
    return result


cdef class WriteScope:
    """Some trees' writer locks and a write set, from __enter__ to __exit__: commits there, aborts on an exception.

    session: that of the handle it is made with; closing the handle ends the scope.

    locks: the WriterLock of each tree to change, in the order of their names. handle: the scope may not go on once this
    isn't open any more; or None. timeout: seconds to wait for locks and for room in the log; with None
    it waits for ever for locks, and for room as long as the store says. owner: kept alive as long as the scope lasts; a
    scope that has ended keeps nothing of the store. made: the states of trees to make if nothing has their names; the
    locks of these are among `locks`.
    """

    cdef Session session
    cdef Store store                # None before it begins
    cdef int forks                  # forks_seen() when it began
    cdef bint cut_off               # its handle was closed before it ended
    cdef Handle handle
    cdef object timeout
    cdef tuple locks
    cdef dict made                  # name -> state, or None
    cdef dict parts                 # name -> Part; None until it begins
    cdef unsigned long inside       # the thread that is inside, 0 when none is
    cdef object bell                # a lock; given back when a thread leaves while others wait for that
    cdef Py_ssize_t waiting         # how many do
    cdef WriteSet write_set
    cdef Tip tip                    # all changes, once they are queued; a tree that is dropped has None there
    cdef readonly str status        # "new", "open", "committed", "aborted", "failed": the outcome is unknown
    cdef object doom                # the error that doomed it
    cdef bint noted                 # by the session
    cdef readonly object _owner     # the handle that it was made with, kept until it ends
    cdef object __weakref__

    def __init__(self, Session session not None, tuple locks not None, Handle handle=None, timeout=None, owner=None,
                 dict made=None):
        self.bell = allocate_lock()
        self.bell.acquire()
        self.session = session
        self.locks = locks
        self.handle = handle
        self.timeout = timeout
        self._owner = owner
        self.made = made
        self.status = "new"

    def __del__(self):
        # The scope was never ended. Its pages are given back before its locks, whose next holder may change the same.
        if self.noted:
            self.session.forget(self)
        if self.parts is not None and self.forks == forks_seen():
            if self.write_set is not None and self.write_set.status == "open":
                self.write_set.abort()
            self.give_locks_back()

    def __enter__(self):
        self.begin()
        self.session.note(self)
        self.noted = True
        if self.session.closed or (self.handle is not None and self.handle.was_closed()):
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
        return self.run(False, name, function, arguments, NULL)

    def _write_tree(self, str name not None, function, *arguments):
        """function(write_set, state, *arguments), which changes a tree. Whatever it raises dooms the scope."""
        return self.run(True, name, function, arguments, NULL)

    def _write_one_in(self, str name not None, int dims, int what, id, box, new_box=None):
        """Changes one record of a tree of `dims` dimensions. what, ...: TreeScope._write_one."""
        cdef Change change
        read_change(&change, what, dims, id, box, new_box)
        result = self.run(True, name, None, (), &change)
        let_queries_pass()
        return result

    def _touch(self, WriterLock lock not None):
        """Adds a tree, if that is possible without waiting. Raises TransactionError, KeyError."""
        require_free("a transaction")
        self.enter_turn()
        try:
            self.require_usable()
            if lock.name in self.parts:
                self.part_of(lock.name)
            else:
                self.add(self.take(lock, None, False))
        finally:
            self.leave_turn()

    def _make(self, WriterLock lock not None, state):
        """Makes a tree with the commit, if that is possible without waiting. Raises TransactionError, ValueError."""
        cdef Part part
        require_free("a transaction")
        self.enter_turn()
        try:
            self.require_usable()
            if lock.name not in self.parts:
                part = self.take(lock, None, False)
                if self.store.published.catalog.get(lock.name) is None:
                    part.missing = True
                    part.state = state
                    return
                del self.parts[lock.name]
                lock.give_back()
            raise ValueError(f"there is something of the name {lock.name!r} already")
        finally:
            self.leave_turn()

    def _drop(self, str name not None):
        """Drops a tree with the commit. Its pages were retired before."""
        cdef Part part
        self.require_usable()
        part = self.part_of(name)
        part.dropped = True
        part.state = part.records = None

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
        cdef bint wait
        self.session.need_writable()
        self.store = self.session.use()
        self.forks = forks_seen()
        deadline = None if self.timeout is None else monotonic() + self.timeout
        self.store.wait_for_room(self.timeout)
        self.parts = {}
        wait = True
        for lock in self.locks:
            lock.refresh()
            if not self.parts:
                wait = not lock.holds_another()
            self.take(lock, deadline, wait)
        if self.handle is not None:
            self.handle.need_open()
        self.write_set = begin_write_set(self.store)
        for lock in self.locks:
            self.add(self.parts[lock.name])
        self.status = "open"
        return 0

    cdef Part take(self, WriterLock lock, object deadline, bint wait):
        """Takes a lock. The part is there before that, so that no lack of memory leaves the lock taken."""
        cdef Part part = Part(lock)
        self.parts[lock.name] = part
        try:
            lock.take(deadline, wait, self.store.syncs_commits)
        except BaseException:
            del self.parts[lock.name]
            raise
        part.holds_lock = True
        return part

    cdef int add(self, Part part) except -1:
        """Finds the state of a tree whose lock is taken. Raises KeyError, and what decoding it raises."""
        cdef CatalogEntry entry = entry_to_change(part.lock, self.store, self.write_set)
        if entry is not None:
            part.state = copy_of_state(entry)
            part.entry = entry
            return 0
        part.missing = True
        if self.made is None or part.lock.name not in self.made:
            raise KeyError(part.lock.name)
        part.state = self.made[part.lock.name]
        return 0

    cdef Part part_of(self, str name):
        cdef Part part = self.parts.get(name)
        if part is None or part.state is None:
            raise KeyError(name)
        return part

    cdef object run(self, bint writes, str name, function, tuple arguments, const Change *change):
        """Carries out a change of one record, or else calls a function, on a tree as the scope has changed it."""
        cdef int flight
        cdef Part part
        cdef Store store
        if writes:
            require_free("a write")
        self.enter_turn()
        try:
            self.require_usable()
            part = self.part_of(name)
            store = self.store
            flight = store.enter()
            try:
                if change != NULL:
                    return part.carry_out(self.write_set, change) != 0
                return function(self.write_set if writes else store, part.state, *arguments)
            except BaseException as error:
                if writes or isinstance(error, (OSError, MemoryError)):
                    self.doom = error
                raise
            finally:
                store.leave(flight)
        finally:
            self.leave_turn()

    cdef int enter_turn(self) except -1:
        if self.inside:
            raise TransactionError("the transaction is in use by another call; it is for one thread at a time")
        self.inside = PyThread_get_thread_ident()
        return 0

    cdef int leave_turn(self) except -1:
        self.inside = 0
        if self.waiting and self.bell.locked():
            self.bell.release()
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
            self.handle.need_open()
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
                self.status = "aborted"
                self.forget()
                if commit:
                    self.require_attached()
            return 0
        if self.inside == PyThread_get_thread_ident():
            raise TransactionError("a transaction can't be ended from inside one of its own calls")
        interrupt = self.wait_for_turn()
        self.inside = PyThread_get_thread_ident()   # also for a signal handler that ends it once more, inside of this
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
        if not self.inside:
            return None
        if held() != FREE:
            raise refusal("the end of a transaction that another thread is using")
        self.waiting += 1
        while self.inside:
            try:
                self.bell.acquire()
            except BaseException as arrived:
                interrupt = arrived
        self.waiting -= 1
        return interrupt

    cdef int commit_changes(self) except -1:
        cdef Part part
        if self.doom is not None:
            raise TransactionError(f"the transaction has failed and was aborted: {self.doom!r}") from self.doom
        require_free("a commit")
        self.require_attached()
        if self.handle is not None:
            self.handle.need_open()
        self.store.need_writable()
        changes = {}
        for name, part in self.parts.items():
            if part.dropped:
                changes[name] = None
            else:
                entry = part.entry_after()
                if entry is not None:
                    changes[name] = entry
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
        cdef Part part
        for part in self.parts.values():
            if part.holds_lock and not part.is_new():
                if part.lock.name in self.tip.changes:
                    part.lock.tip = self.tip
                part.give_lock_back(False)

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

    cdef void forget(self) noexcept:
        """Drops all that an ended scope doesn't need, and what the next writers had from it while it was queued."""
        if self.tip is not None:
            self.tip.write_set = self.tip.changes = None
        self.tip = None
        self.write_set = self.doom = self.handle = None
        self.parts = self.made = None
        self.locks = ()
        self.store = None
        if self.noted:
            self.session.forget(self)
            self.noted = False
        self.session = None
        self._owner = None          # last: it may be what kept the index open

    cdef int give_locks_back(self) except -1:
        """Gives the locks back that it still holds."""
        cdef Part part
        if self.parts is not None:
            for part in self.parts.values():
                if part.holds_lock:
                    part.give_lock_back(self.status == "committed")
        return 0


cdef class TreeScope(WriteScope):
    """A scope of one tree, which knows its name and dimensions."""

    cdef readonly str _name
    cdef readonly int _dims

    def __init__(self, Session session not None, WriterLock lock not None, Handle handle not None, timeout, owner):
        super().__init__(session, (lock,), handle, timeout, owner)
        self._name = lock.name
        self._dims = handle.dims

    def _write_one(self, int what, id, box, new_box=None):
        """Changes one record; returns whether it was there, for an insertion True.

        what: INSERT, DELETE, or REPLACE by one with the same id and `new_box`. Refused input, of which `insert` says
        what it raises, changes nothing; what is raised later dooms the scope.
        """
        cdef Change change
        read_change(&change, what, self._dims, id, box, new_box)
        result = self.run(True, self._name, None, (), &change)
        let_queries_pass()
        return result
