"""The store: reading pages, pins and calls in flight, publication and reclaim. docs: store.pxd."""

import atexit
from _thread import allocate_lock, get_ident

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.pythread cimport PyThread_allocate_lock, PyThread_free_lock
from libc.string cimport memset

from xtree.persistence.base.atomics cimport load_acquire, load_relaxed
from xtree.persistence.base.breath cimport Breath, first_breath, spend
from xtree.persistence.base.lock_ranks cimport FREE, IN_THREAD, held, refusal
from xtree.persistence.base.right_of_way cimport got_gil, want_gil
from xtree.persistence.base.memory cimport reallocate, release
from xtree.persistence.pages.mmap_windows cimport offset_of, window_of
from xtree.persistence.pages.node_id cimport make_node_id, tag_of
from xtree.persistence.pages.object_table cimport (
    STATE_FREE, STATE_LIVE, class_of, kind_of, state_of,
)
from xtree.persistence.pages.page cimport PAGE_FORMAT, PAGE_MAGIC, PagePrefix, class_bytes
from xtree.persistence.pages.page_checksum cimport page_crc

from xtree.errors import ClosedError, CorruptionError, FormatVersionError, ReadOnlyError, StoreFailedError
from xtree.persistence.pages.stored_table import snapshot_table
from xtree.persistence.base.threads import start_detached

cdef extern from *:
    """
    #ifdef NDEBUG
    #define CHECKED 0
    #else
    #define CHECKED 1
    #endif
    """
    const bint CHECKED              # what an assertion compares is computed in every build

cdef extern from "<assert.h>" nogil:
    void c_assert "assert"(bint condition) noexcept     # in the checked build only

cdef enum:
    WORK_BYTES = 4                  # of a page to be verified: one unit of work, as breaths count it
    FREED_WITH_GIL = 256            # pages: so few are freed before the GIL would be back

assert sizeof(PagePrefix) == 24

cdef PageVerifier verifiers[256]
memset(verifiers, 0, sizeof(verifiers))

_closing = set()                    # stores that a thread of their own closes


@atexit.register
def _wait_for_closing():
    """At the end of the process: closes cleanly what a finalizer or a signal handler has begun to close."""
    for store in list(_closing):
        store.close()


cdef int lock_to_read(Store store) except -1:
    """Takes the store's lock. Doesn't wait in a thread that holds its rank or above: may raise TransactionError."""
    if held() < STORE_LOCK:
        with nogil:
            hold_lock(store)
    elif not try_lock(store):
        raise refusal("this call")
    return 0


cdef int register_kind(int kind, PageVerifier verifier) except -1:
    if not 1 <= kind <= 255 or verifiers[kind] != NULL:
        raise ValueError(f"page kind {kind} is taken or out of range")
    verifiers[kind] = verifier
    return 0


@cython.final
cdef class Published:
    def __cinit__(self, uint64_t epoch, catalog):
        self.epoch = epoch
        self.catalog = catalog

    def __repr__(self):
        return f"Published(epoch={self.epoch}, roots={len(self.catalog)})"


@cython.final
cdef class ReadCall:
    """One reading call: it is in flight, and the epoch it reads is pinned, from __enter__ to __exit__."""

    cdef Store store
    cdef int slot
    cdef int flight

    def __cinit__(self, Store store):
        self.store = store

    def __enter__(self):
        self.flight = self.store.enter()
        try:
            self.slot = self.store.epochs.pin()
        except BaseException:
            self.store.leave(self.flight)
            raise
        return self.store.published

    def __exit__(self, *exception):
        self.store.epochs.unpin(self.slot)
        self.store.leave(self.flight)


@cython.final
cdef class Call:
    """One call in flight, on behalf of somebody who holds a pin already."""

    cdef Store store
    cdef int flight

    def __cinit__(self, Store store):
        self.store = store

    def __enter__(self):
        self.flight = self.store.enter()

    def __exit__(self, *exception):
        self.store.leave(self.flight)


@cython.final
cdef class Flight:
    """Keeps mappings in place that are in use outside of any call: close() doesn't wait for its end."""

    cdef Store store
    cdef int flight

    def __cinit__(self, Store store):
        self.store = store

    def __enter__(self):
        self.flight = self.store.flights.pin()

    def __exit__(self, *exception):
        self.store.flights.unpin(self.flight)


@cython.final
cdef class Pin:
    def __cinit__(self, Store store):
        self.slot = -1
        self.store = store
        self.slot = store.epochs.pin()
        store.epochs.keep(self.slot, True)
        store.pins_kept += 1
        self.published = store.published
        self.epoch = self.published.epoch

    def __del__(self):
        # Not in __dealloc__: garbage collection has taken the store away by then.
        self.release()

    def release(self):
        """Lets the epoch go. Idempotent."""
        cdef int slot = self.slot
        self.slot = -1
        self.published = None
        if slot >= 0:
            self.store.epochs.keep(slot, False)
            self.store.epochs.unpin(slot)
            self.store.pins_kept -= 1
            self.store.look_for_users()


cdef class Store:
    """What MemoryStore and DurableStore share: pages, pins, calls in flight, write sets, publication."""

    def __cinit__(self, *args, **kwargs):
        self.lock = NULL
        self.status = OPEN
        self.idle = allocate_lock()
        self.callers = NULL
        self.write_sets = {}
        self.abandoned = []
        self.flights = Epochs(timed=False)
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no memory for a store")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)
        release(self.callers)

    def _set_up(self, ObjectTable table, Epochs epochs, Windows windows, SegmentAllocator allocator,
                uint64_t epoch, catalog, path, bint read_only):
        """Assembles the store at an epoch. Called once, before anyone else sees it."""
        self.table = table
        self.epochs = epochs
        self.windows = windows
        self.allocator = allocator
        self.path = path
        self.read_only = read_only
        self.published = Published(epoch, catalog)
        epochs.advance(epoch)

    # Calls in flight, and the end of them.

    cdef int enter(self) except -1:
        cdef unsigned long *larger
        cdef int flight
        if self.status >= CLOSED:
            raise ClosedError(self.why_closed())
        if self.calls == self.callers_room:
            larger = <unsigned long *>reallocate(self.callers, (2 * self.calls + 8) * sizeof(unsigned long))
            if larger == NULL:
                raise MemoryError("no memory for one more call")
            self.callers = larger
            self.callers_room = 2 * self.calls + 8
        flight = self.flights.pin()
        self.callers[self.calls] = PyThread_get_thread_ident()
        self.calls += 1
        return flight

    cdef void leave(self, int flight) noexcept:
        cdef Py_ssize_t i = self.calls - 1
        cdef unsigned long me = PyThread_get_thread_ident()
        self.land(flight)
        while i > 0 and self.callers[i] != me:
            i -= 1
        self.calls -= 1
        self.callers[i] = self.callers[self.calls]
        if self.calls == 0:
            if self.status >= CLOSED and self.idle.locked():
                self.idle.release()
            if self.unused is not None:
                self.look_for_users()

    cdef int look_for_users(self) except -1:
        if self.unused is not None and self.calls == 0 and self.pins_kept == 0:
            function, self.unused = self.unused, None
            function()
        return 0

    def when_unused(self, function):
        """Has function() called once no call runs and no Pin is held, by whoever ends the last; at once, if so now."""
        self.unused = function
        self.look_for_users()

    cdef int land(self, int flight) noexcept:
        if flight >= 0:
            self.flights.unpin(flight)
        return -1

    def waits_for_itself(self):
        """Whether close() would wait for the calling thread, which is in a call, or others may wait for it."""
        cdef Py_ssize_t i
        cdef unsigned long me = PyThread_get_thread_ident()
        if held() != FREE:
            return True
        for i in range(self.calls):
            if self.callers[i] == me:
                return True
        return False

    def why_closed(self):
        where = "" if self.path is None else f" {self.path}"
        if self.status == FORKED and self.path is None:
            return "the index was being changed or closed when the process was forked"
        if self.status == FORKED:
            return f"the index{where} was opened before a fork; open it again in the child process"
        return f"the index{where} is closed"

    def read(self):
        """A context manager for one reading call: pins the current epoch, gives its Published. Raises ClosedError."""
        return ReadCall(self)

    def call(self):
        """A context manager for one call by the holder of a pin or a write set. Raises ClosedError."""
        return Call(self)

    def in_flight(self):
        """A context manager for a thread of the store's own that uses pages: close() doesn't wait for it."""
        return Flight(self)

    def pin(self):
        """Pins the current epoch until the Pin is released. Raises ClosedError, MemoryError."""
        if self.status >= CLOSED:
            raise ClosedError(self.why_closed())
        return Pin(self)

    def require_writable(self):
        """Raises ClosedError, ReadOnlyError or StoreFailedError unless the store takes writes."""
        self.need_writable()

    cdef int need_writable(self) except -1:
        if self.status >= CLOSED:
            raise ClosedError(self.why_closed())
        if self.read_only:
            raise ReadOnlyError(f"the index {self.path} was opened with mode='r'")
        if self.status == POISONED:
            raise StoreFailedError(f"the index {self.path} failed earlier, reopen it to write again: {self._failure()}")
        return 0

    @property
    def state(self):
        """"open", "poisoned", "closed" or "forked"."""
        return ("open", "poisoned", "closed", "forked")[self.status - OPEN]

    def close(self):
        """Refuses new calls, waits for those running, aborts open write sets, lets go of everything. Idempotent.

        A second thread that closes the store waits for the first to be done. From inside one of the store's own calls
        (a signal handler, a callback), or where others may wait for the calling thread, close returns at once, and a
        thread of its own does the rest as soon as that call has ended.
        """
        closing = allocate_lock()
        closing.acquire()
        while self.status >= CLOSED:
            if self.status == FORKED or self.closer == get_ident() or self.waits_for_itself():
                return
            other = self.closing
            other.acquire()
            other.release()
            if self.status >= CLOSED:       # else the close was interrupted, and it is open again
                return
        failed = self.status == POISONED
        self.status = CLOSED
        self.closing = closing
        self.closer = None                  # _finish_closing says who it is
        self.idle.acquire(False)
        if not self.waits_for_itself():
            self._finish_closing(failed)
            return
        _closing.add(self)
        try:
            start_detached("xtree-closer", self._finish_closing, failed)
        except BaseException:
            _closing.discard(self)
            self._reopen(failed)
            raise

    def _finish_closing(self, failed):
        cdef int before = hold(IN_THREAD)   # whoever else closes it waits for this thread
        self.closer = get_ident()
        try:
            while self.calls > 0:
                self.idle.acquire()
        except BaseException:               # interrupted while it waited
            resume(before)
            self._reopen(failed)
            raise
        try:
            for reference in list(self.write_sets.values()):
                write_set = reference()
                if write_set is not None:
                    write_set.abort()
            self.give_back_abandoned()
            self._shut_down(failed)
        finally:
            try:
                self._forget_contents()
            finally:                        # an interrupt's error in there is no reason to keep others waiting
                resume(before)
                _closing.discard(self)
                self.closing.release()

    def _reopen(self, failed):
        self.status = POISONED if failed else OPEN
        self.closing.release()

    def _forget_contents(self):
        """After close: lets catalog and rows go, though somebody may keep the handle. Pins still end, so epochs stay.

        A write set may still be in the middle of its abort: it gives its pages back under the lock, or not at all.
        """
        try:
            published = Published(self.published.epoch, type(self.published.catalog)())
            allocator, table = SegmentAllocator(None), ObjectTable()
        except MemoryError:         # then they go with the handle
            return
        old = self.allocator, self.table        # which end once the lock is given back
        with nogil:
            hold_lock(self)
        self.published, self.allocator, self.table = published, allocator, table
        self.emptied = True
        drop_lock(self)
        del old

    # In memory: what a fork does to it.

    def stop_commits(self, uint64_t until_ns):
        """Takes the lock of commits; waits up to a moment of the clock. False when it couldn't, or had it before."""
        return False

    def let_commit(self):
        """Gives the lock of commits back."""

    cdef int go_on_in_child(self) except -1:
        """Goes on in a forked child, at the last commit. The calls of other threads are gone, with their pins, and so
        are all write sets begun before.

        What a call that was cut off in the middle has reserved stays reserved: nobody knows how far it was.
        """
        cdef Py_ssize_t i = 0
        cdef unsigned long me = PyThread_get_thread_ident()
        while i < self.calls:
            if self.callers[i] == me:
                i += 1
            else:
                self.calls -= 1
                self.callers[i] = self.callers[self.calls]
        self.idle = allocate_lock()
        begun = [reference() for reference in self.write_sets.values()]
        for write_set in begun:
            if write_set is not None:
                write_set.orphan()
        self.write_sets = {}
        if begun:
            self.table.let_claims_go()
        self.epochs.forget_other_threads()
        return 0

    # What a durable store does differently.

    def wait_for_room(self, timeout):
        """Waits, up to `timeout` seconds, while too much that was written is still to be tidied up."""

    def make_ready(self):
        """Before a write: makes the allocator ready."""

    def _failure(self):
        """Why the store is poisoned."""
        return "unknown"

    def _shut_down(self, failed):
        """The end of close."""
        self.windows.unmap_all()

    def commit(self, write_set, dict changes, on_queued):
        """Makes a write set and its catalog changes the next epoch; returns the epoch. on_queued: WriteSet.commit."""
        raise TypeError(f"{type(self).__name__} has no way to commit")

    def poison(self):
        """Refuses writes from now on."""
        if self.status == OPEN:
            self.status = POISONED

    # Publication and reclaim.

    def publish(self, list write_sets, uint64_t first_epoch, catalog):
        """Makes queued write sets, of epochs one after the other, and the catalog visible, all at once.

        Can't fail once it has begun.
        """
        cdef Published published = Published(first_epoch + len(write_sets) - 1, catalog)
        cdef uint64_t epoch = first_epoch
        for write_set in write_sets:
            write_set.publish_rows(epoch)
            epoch += 1
        self.published = published
        self.epochs.advance(published.epoch)
        for write_set in write_sets:
            write_set.end("committed")

    def reclaim(self, durable_epoch=None, Py_ssize_t limit=1 << 62):
        """Frees slots and handles under the reuse rule: of pages retired at or before every pin and the durable epoch.

        Frees at most `limit` pages; returns how many.
        """
        cdef uint64_t durable = <uint64_t>-1 if durable_epoch is None else durable_epoch
        cdef Py_ssize_t done = 0
        if try_lock(self):
            done = self.free_retired(durable, min(limit, FREED_WITH_GIL))
            if done < min(limit, FREED_WITH_GIL):
                return done
        with nogil:
            hold_lock(self)
            done += self.free_retired(durable, limit - done)
            want_gil()
        got_gil()
        return done

    cdef Py_ssize_t free_retired(self, uint64_t durable, Py_ssize_t limit) except -1 nogil:
        """Frees pages as `reclaim` says, then gives the store's lock back, which the caller has taken."""
        cdef uint64_t horizon, address = 0
        cdef int size_class = 0
        cdef Py_ssize_t done = 0
        try:
            horizon = self.epochs.reclaim_horizon()
            if durable < horizon:
                horizon = durable
            while done < limit and self.table.reclaim_one(horizon, &address, &size_class):
                self.allocator.free(address)
                done += 1
        finally:
            drop_lock(self)
        return done

    def snapshot_rows(self, uint64_t epoch, list file_of_window):
        """The handles, their tags and the rows visible at an epoch, as a checkpoint stores them."""
        with nogil:
            hold_lock(self)
        try:
            return snapshot_table(self.table, epoch, file_of_window)
        finally:
            drop_lock(self)

    def _occupy_live_slots(self, SegmentAllocator allocator not None):
        """Marks the slots of the live rows as used in an allocator that knows the files, but no slot in use yet.

        Raises CorruptionError when two rows overlap, or one has no slot of its class.
        """
        cdef uint64_t handle, word, address = 0
        cdef Row *row
        try:
            with nogil:
                hold_lock(self)
                try:
                    handle = self.table.next_handle(0)
                    while handle:
                        row = self.table.row(handle)
                        word, address = load_acquire(&row.word), load_relaxed(&row.address)
                        if state_of(word) == STATE_LIVE and not self.windows.is_anonymous(window_of(address)):
                            allocator.occupy(class_of(word), address)
                        handle = self.table.next_handle(handle)
                finally:
                    drop_lock(self)
        except CorruptionError as error:
            raise CorruptionError(f"{self.where(address)}: {error}") from None

    def _use_allocator(self, SegmentAllocator allocator):
        """Begins to allocate from another allocator, while nobody is writing."""
        self.allocator = allocator

    cdef int give_back_abandoned(self) except -1:
        """Gives back the pages of write sets that were aborted where nothing could wait for the lock."""
        while self.abandoned:
            self.abandoned.pop().give_back()

    cdef int give_back(self, NodeID node) except -1 nogil:
        cdef uint64_t address = self.table.row(handle_of(node)).address
        self.table.abandon(node)
        return self.allocator.free(address)

    # Reading pages.

    cdef char *resolve_slowly(self, NodeID node) except NULL nogil:
        cdef Row *row = self.table.row(handle_of(node))
        cdef uint64_t word, address
        cdef char *page
        if row == NULL:
            with gil:
                raise CorruptionError(f"{self.where()}: node {node:#x} names a handle that was never given out")
        word = load_acquire(&row.word)
        if (word & WORD_TAG) != tag_of(node) or state_of(word) == STATE_FREE:
            with gil:
                raise CorruptionError(f"{self.where()}: node {node:#x} isn't there: its handle has tag "
                                      f"{word & WORD_TAG} and state {state_of(word)}")
        address = load_relaxed(&row.address)
        page = self.place(address)
        if not word & WORD_VERIFIED:
            self.verify(node, row, page)
            self.table.mark_verified(node)
        return page

    cdef char *place(self, uint64_t address) except NULL nogil:
        cdef char *base
        cdef char *page = self.windows.pointer(address)
        if CHECKED:
            c_assert(self.flights.current_epoch() == 0 or self.flights.is_pinned_here())    # 0: nothing was ever hidden
        if page != NULL:
            return page
        with gil:
            base = self.windows.map_window(window_of(address))
        return base + offset_of(address)

    cdef char *place_to_write(self, uint64_t address) except NULL nogil:
        if not self.windows.is_announced(window_of(address)):
            with gil:
                self.windows.announce(window_of(address))
        return self.place(address)

    cdef int verify(self, NodeID node, Row *row, const char *page) except -1 nogil:
        """Checks a page against its row, as at its first touch."""
        cdef uint64_t word = load_acquire(&row.word), address = load_relaxed(&row.address), size
        cdef int size_class = class_of(word)
        cdef const PagePrefix *prefix = <const PagePrefix *>page
        cdef const char *wrong = NULL
        cdef uint32_t crc
        size = class_bytes(size_class)
        if offset_of(address) + size > self.windows.end_of(window_of(address)):
            with gil:
                raise CorruptionError(f"{self.where(address)}: node {node:#x} lies outside its file")
        crc = page_crc(page, size)
        if crc != row.crc or crc != prefix.crc:
            with gil:
                raise CorruptionError(f"{self.where(address)}: page of node {node:#x} has CRC {crc:#010x}; expected "
                                      f"{row.crc:#010x} by its row, {prefix.crc:#010x} by its header")
        if prefix.magic != PAGE_MAGIC or prefix.node_id != node:
            with gil:
                raise CorruptionError(f"{self.where(address)}: expected the page of node {node:#x}, found node "
                                      f"{prefix.node_id:#x} with magic {prefix.magic:#010x}")
        if prefix.format != PAGE_FORMAT:
            with gil:
                raise FormatVersionError(f"{self.where(address)}: page format {prefix.format}; "
                                         f"this xtree reads {PAGE_FORMAT}")
        if prefix.kind != kind_of(word) or prefix.size_class != size_class:
            with gil:
                raise CorruptionError(f"{self.where(address)}: page of node {node:#x} has kind {prefix.kind} and size "
                                      f"class {prefix.size_class}; its row says {kind_of(word)} and {size_class}")
        if verifiers[prefix.kind] != NULL:
            wrong = verifiers[prefix.kind](page, size_class)
        if wrong != NULL:
            with gil:
                raise CorruptionError(f"{self.where(address)}: page of node {node:#x}: {wrong.decode()}")
        return 0

    def where(self, address=None):
        """Names the place of an address for an error message."""
        if self.path is None:
            return "in memory"
        if address is None:
            return str(self.path)
        return f"{self._file_name(window_of(address))}, offset {offset_of(address)}"

    def _file_name(self, window):
        """The file behind a window."""
        return f"{self.path}, window {window}"

    def read_page(self, NodeID node):
        """What the structure wrote to a page, after its prefix, as bytes. The caller holds a pin or a write set.

        Raises CorruptionError for a node that isn't there.
        """
        cdef char *page
        cdef uint64_t size
        cdef int flight = self.enter()
        try:
            with nogil:
                page = resolve(self, node)
            size = class_bytes((<PagePrefix *>page).size_class)
            return PyBytes_FromStringAndSize(page + sizeof(PagePrefix), size - sizeof(PagePrefix))
        finally:
            self.leave(flight)

    def verify_pages(self, uint64_t epoch):
        """Verifies anew every live page that was born up to a pinned epoch, whether it was touched before or not.

        Returns how many. The caller is in flight. Raises CorruptionError.
        """
        cdef uint64_t handle
        cdef Row *row
        cdef uint64_t word
        cdef char *page
        cdef NodeID node
        cdef Py_ssize_t verified = 0
        cdef uint64_t generation = 0
        cdef Breath breath
        if self.path is None:
            return 0
        first_breath(&breath, None)
        handle = self.table.next_handle(0)
        while handle:
            row = self.table.row(handle)
            word = load_acquire(&row.word)
            node = make_node_id(handle, word & WORD_TAG)
            handle = self.table.next_handle(handle)
            if state_of(word) != STATE_LIVE or load_acquire(&row.birth) > epoch:
                continue
            with nogil:
                breathe(self, &generation)
                spend(&breath, class_bytes(class_of(word)) // WORK_BYTES)
                page = resolve(self, node)
                self.verify(node, row, page)
            verified += 1
        return verified

    def stats(self):
        """Counters of table, allocator and pins, as nested dicts. Raises ClosedError."""
        with self.call():
            return {
                "epoch": self.published.epoch,
                "roots": len(self.published.catalog),
                "state": self.state,
                "object_table": self.table.stats(),
                "allocator": self._allocator_stats(),
                "epochs": self.epochs.stats(),
                "windows": self.windows.stats(),
                "failures": {
                    "allocations": load_relaxed(&self.allocation_failures),
                    "handles": load_relaxed(&self.handle_failures),
                },
            }

    def _allocator_stats(self):
        """The allocator's counters, under the lock; in a signal handler or finalizer its thread may have it."""
        if holds_lock(self):
            return self.allocator.stats()
        lock_to_read(self)
        try:
            return self.allocator.stats()
        finally:
            drop_lock(self)

    def check(self):
        """Verifies table, allocator and their agreement.

        Raises CorruptionError; TransactionError where that could wait for itself.
        """
        lock_to_read(self)
        try:
            self.table.check()
            self._check_slots()
        finally:
            drop_lock(self)

    def _check_slots(self):
        """Every slot in use belongs to a row, and the other way round. The lock is held."""
        self.allocator.check()
        rows = self.table.stats()
        expected = rows["live"] + rows["reserved"] + rows["retired"]
        if self.allocator.slots_used != expected:
            raise CorruptionError(f"{self.where()}: {self.allocator.slots_used} slots are in use, "
                                  f"expected {expected} by the rows")
