"""The store: pages named by NodeIDs, changed by copy-on-write, made visible commit by commit.

A reader pins, takes the root from the published catalog, and resolves NodeIDs to pointers, without the GIL and
without a lock. A writer collects its new pages in a WriteSet (write_set.pxd) and commits them with new catalog entries.

Pointers are borrowed: for published pages as long as a pin protects them, for pages of a WriteSet until they are
retired, and in both cases no longer than the call that resolved them is in flight. Keep NodeIDs, not pointers.

A pin says which pages somebody may still want to see; a flight says which mappings a running call may be reading from.

    field             written by                              read by                 order
    published         the publisher, with the GIL             any thread              the GIL
    status, calls     open, close, fork; every call           any thread              the GIL
    callers           every call; close reads                 any thread              the GIL
    pins_kept, unused Pin; when_unused, the end of a call     any thread              the GIL
    closing, closer   the thread that closes; fork            any thread              the GIL
    abandoned         finalizers that can't wait for `lock`   begin, close            the GIL
    write_sets        a write set that begins or ends         close                   the GIL: weak references, taken
                                                                                      out before an id is reused
    epochs, flights   see mvcc.pxd                            any thread              seq_cst
    windows           see mmap_windows.pxd                    any thread              seq_cst / acquire
    lock_holder       whoever holds `lock`, for itself        any thread              relaxed: each asks for itself only
    *_failures        whoever holds `lock`                    stats                   relaxed
    table, allocator  whoever holds `lock`                    see their headers

No thread waits for `lock` while it holds the GIL, but it may ask for the GIL while it holds `lock`; so the two can't
deadlock. A thread that has the GIL may try `lock`, and then notes its rank, or holds it only as long as nothing gives
the GIL away. hold_lock and try_lock note the rank of `lock` (lock_ranks.pxd): garbage collection may abort a forgotten
write set in a thread that holds `lock`, or a lock that comes after it. The write set then can't wait for `lock`, and is
put on the list `abandoned` instead.
"""

cimport cython
from cpython.pythread cimport NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_release_lock, PyThread_type_lock
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.base.atomics cimport load_acquire, load_relaxed, store_relaxed
from xtree.persistence.base.lock_ranks cimport STORE_LOCK, hold, resume
from xtree.persistence.base.pythread cimport PyThread_get_thread_ident
from xtree.persistence.pages.mmap_windows cimport Windows
from xtree.persistence.pages.mvcc cimport Epochs
from xtree.persistence.pages.node_id cimport NodeID, handle_of
from xtree.persistence.pages.object_table cimport ObjectTable, Row, WORD_TAG, WORD_VERIFIED, likely
from xtree.persistence.pages.page cimport PageVerifier
from xtree.persistence.pages.segment_allocator cimport SegmentAllocator

cdef enum:                          # Store.status
    OPEN = 1
    POISONED = 2
    CLOSED = 3
    FORKED = 4

# Tells every store how to judge pages of a kind. Called once at import by the structure that owns the kind.
cdef int register_kind(int kind, PageVerifier verifier) except -1


cdef inline void lock_without_gil(PyThread_type_lock lock) noexcept nogil:
    """Waits for a store's lock. Never call it while holding the GIL."""
    PyThread_acquire_lock(lock, WAIT_LOCK)


cdef inline void lock_with_gil(PyThread_type_lock lock) noexcept:
    """Takes a store's lock from code that has the GIL, which is given away only if there is a wait."""
    if not PyThread_acquire_lock(lock, NOWAIT_LOCK):
        with nogil:
            PyThread_acquire_lock(lock, WAIT_LOCK)


@cython.final
cdef class Published:
    """What one epoch is: its number and its catalog. Immutable: the store replaces its `published` as a whole."""

    cdef readonly uint64_t epoch
    cdef readonly object catalog


@cython.final
cdef class Pin:
    """Keeps one epoch readable until release(), or until it is forgotten."""

    cdef readonly Store store
    cdef readonly Published published   # None once it is released
    cdef readonly uint64_t epoch
    cdef int slot


cdef class Store:
    cdef readonly ObjectTable table
    cdef readonly Epochs epochs
    cdef readonly Epochs flights    # which calls are running, by the generation of the mappings
    cdef readonly Windows windows
    cdef readonly SegmentAllocator allocator
    cdef readonly Published published
    cdef readonly object path       # of the directory, None in memory
    cdef readonly bint read_only
    cdef public bint syncs_commits  # a commit waits for the disk; set once, before anyone else sees the store
    cdef PyThread_type_lock lock
    cdef uint64_t lock_holder       # the thread that has the lock by hold_lock or try_lock, 0 when none has
    cdef int holder_before          # what `resume` takes when that thread gives it back
    cdef list abandoned             # write sets whose pages are still to be given back
    cdef int status                 # OPEN ... FORKED
    cdef bint emptied               # closed, and pages and rows forgotten; written with the GIL and under `lock`
    cdef Py_ssize_t calls           # running now
    cdef unsigned long *callers     # the threads that they run in
    cdef Py_ssize_t callers_room
    cdef object closing             # a lock, held until the close that has begun is over, or was interrupted
    cdef object closer              # the thread that carries it out
    cdef object idle                # a lock, given back when the last running call has ended, once the store is closing
    cdef Py_ssize_t pins_kept       # Pins that weren't released
    cdef object unused              # called once there are no calls and no Pins; None: nothing is
    cdef dict write_sets            # weak references to those that haven't ended, by their ids
    cdef uint64_t allocation_failures   # pages for which there was no slot; written under `lock`
    cdef uint64_t handle_failures       # pages for which there was no handle; written under `lock`
    cdef object __weakref__

    # The slow half of resolve: maps a window, verifies a page at its first touch. Raises CorruptionError, OSError.
    cdef char *resolve_slowly(self, NodeID node) except NULL nogil
    cdef int verify(self, NodeID node, Row *row, const char *page) except -1 nogil
    # Begins and ends a call: enter gives the number of its flight, for leave. Raises ClosedError, MemoryError.
    cdef int enter(self) except -1
    cdef void leave(self, int flight) noexcept
    # Ends the flight of a call that goes on without using pages: it is going to wait. Gives the number for leave.
    cdef int land(self, int flight) noexcept
    # The byte at an address; maps its window if need be. The caller is in flight. Raises what mapping a file raises.
    cdef char *place(self, uint64_t address) except NULL nogil
    # The same for a page about to be written: its file is told that it will have to be synced.
    cdef char *place_to_write(self, uint64_t address) except NULL nogil
    # Frees retired pages, at most `limit`, up to a durable epoch, and gives back the lock, which the caller has taken.
    cdef Py_ssize_t free_retired(self, uint64_t durable, Py_ssize_t limit) except -1 nogil
    # Raises ClosedError, ReadOnlyError or StoreFailedError unless the store takes writes.
    cdef int need_writable(self) except -1
    cdef int go_on_in_child(self) except -1
    # Calls `unused` if nobody is left.
    cdef int look_for_users(self) except -1
    # Gives back the pages of write sets that were aborted where they could not wait for the lock.
    cdef int give_back_abandoned(self) except -1
    # Gives an unused slot and handle back; the lock is held.
    cdef int give_back(self, NodeID node) except -1 nogil


cdef inline void note_holder(Store store) noexcept nogil:
    store_relaxed(&store.lock_holder, PyThread_get_thread_ident())
    store.holder_before = hold(STORE_LOCK)


cdef inline void hold_lock(Store store) noexcept nogil:
    """Waits for the store's lock; for a thread that holds nothing of its rank or above."""
    lock_without_gil(store.lock)
    note_holder(store)


cdef inline bint try_lock(Store store) noexcept nogil:
    """Takes the store's lock if nobody has it."""
    if not PyThread_acquire_lock(store.lock, NOWAIT_LOCK):
        return False
    note_holder(store)
    return True


cdef inline void drop_lock(Store store) noexcept nogil:
    """Gives back what hold_lock or try_lock took."""
    store_relaxed(&store.lock_holder, 0)
    resume(store.holder_before)
    PyThread_release_lock(store.lock)


cdef inline bint holds_lock(Store store) noexcept nogil:
    """Whether this thread has the store's lock."""
    return load_relaxed(&store.lock_holder) == PyThread_get_thread_ident()


cdef inline int breathe(Store store, uint64_t *generation) except -1 nogil:
    """Lets go of the mappings that a long call has done with. Called between its parts, where it holds no pointer.

    `generation` is that of the last breath, 0 before the first. Does nothing inside another call of this thread.
    """
    if store.flights.current_epoch() != generation[0]:
        generation[0] = store.flights.current_epoch()
        store.flights.renew()
    return 0


cdef inline char *resolve(Store store, NodeID node) except NULL nogil:
    """The page of a NodeID, as a pointer to its first byte. Raises CorruptionError."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef uint64_t word
    cdef char *page
    if likely(row != NULL):
        word = load_acquire(&row.word)
        if likely((word & (WORD_VERIFIED | WORD_TAG)) == (WORD_VERIFIED | (node & WORD_TAG))):
            page = store.windows.pointer(load_relaxed(&row.address))
            if likely(page != NULL):
                return page
    return store.resolve_slowly(node)
