"""Probes: inner loops without the GIL or Python between two steps, for `bench substrate` and tests.

Each returns what it computed or saw, so that a measurement can be compared with another way to the same result.
"""

cimport cython
from cpython.pythread cimport PyThread_release_lock
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t

from xtree.persistence.base.atomics cimport fetch_add, load_acquire, load_relaxed, load_seq, store_release, store_seq
from xtree.persistence.base.memory cimport allocate_zeroed, release
from xtree.persistence.pages.mmap_windows cimport Windows
from xtree.persistence.pages.mvcc cimport SLOTS_OF_FIRST, SLOTS_PER_BLOCK, Epochs, PinSlot
from xtree.persistence.pages.node_id cimport NodeID, handle_of, tag_of
from xtree.persistence.pages.object_table cimport (
    BLOCK_BITS, BLOCK_ROWS, MAX_SLABS, SLAB_BITS, STATE_LIVE, WORD_TAG, WORD_VERIFIED, Row, likely, state_of,
)
from xtree.persistence.pages.segment_allocator cimport SegmentAllocator
from xtree.persistence.store.store cimport Store, drop_lock, hold_lock, lock_without_gil, resolve

cdef extern from "atomics.h" nogil:
    void yield_processor "XT_YIELD"() noexcept

cdef enum:
    MOST_HELD = 1024                # pins of one thread of a turnover
    MOST_BEHIND = 4096              # pages of a turnover that wait to be freed; when there are more, its writer waits
    LOOKS_AT_OLD = 16               # at the page of an old epoch
    FREE_IN_CROWD = 8               # slots for pins
    PAGE_WORDS = 48                 # written to each of its pages, and read again


@cython.final
cdef class PlainTable:
    """A table of rows with one directory of blocks and nothing above it.

    The rows are those of a store, at the addresses where the store has them, so that both read the same cache lines.
    Only nodes of the first shard have a place in it.
    """

    cdef uint64_t *slabs
    cdef uint64_t high_water

    def __cinit__(self, Store store, const NodeID[::1] nodes):
        cdef Py_ssize_t i
        cdef uint64_t handle
        cdef Row *row
        self.slabs = NULL
        self.high_water = 0
        self.slabs = <uint64_t *>allocate_zeroed(<size_t>MAX_SLABS << (SLAB_BITS - BLOCK_BITS), sizeof(uint64_t))
        if self.slabs == NULL:
            raise MemoryError("no memory for a directory of rows")
        for i in range(nodes.shape[0]):
            handle = handle_of(nodes[i])
            row = store.table.row(handle)
            if row == NULL or handle >= <uint64_t>MAX_SLABS << SLAB_BITS:
                raise ValueError(f"node {nodes[i]:#x} has no row in the first shard")
            store_release(&self.slabs[handle >> BLOCK_BITS], <uint64_t>(row - (handle & (BLOCK_ROWS - 1))))
            self.high_water = max(self.high_water, handle + 1)

    def __dealloc__(self):
        release(self.slabs)

    cdef inline Row *row(self, uint64_t handle) noexcept nogil:
        if likely(handle - 1 < load_acquire(&self.high_water) - 1):
            return <Row *>load_acquire(&self.slabs[handle >> BLOCK_BITS]) + (handle & (BLOCK_ROWS - 1))
        return NULL


@cython.final
cdef class PlainStore:
    """As much of a store as a lookup needs, over a table without shards; the difference is what shards cost."""

    cdef PlainTable table
    cdef Windows windows

    def __init__(self, Store store not None, const NodeID[::1] nodes):
        self.table = PlainTable(store, nodes)
        self.windows = store.windows


cdef char *_not_there() except NULL with gil:
    raise ValueError("a node that isn't there, or whose page was never verified")


cdef inline char *_resolve_plainly(PlainStore store, NodeID node) except NULL nogil:
    """store.resolve over a plain table, whose pages are all mapped and verified."""
    cdef Row *row = store.table.row(handle_of(node))
    cdef uint64_t word
    cdef char *page
    if likely(row != NULL):
        word = load_acquire(&row.word)
        if likely((word & (WORD_VERIFIED | WORD_TAG)) == (WORD_VERIFIED | (node & WORD_TAG))):
            page = store.windows.pointer(load_relaxed(&row.address))
            if likely(page != NULL):
                return page
    return _not_there()


def pages_at(Windows windows, const uint64_t[::1] addresses, uint64_t[::1] pages):
    """Fills in where the page of each address is in memory."""
    cdef Py_ssize_t i
    if pages.shape[0] != addresses.shape[0]:
        raise ValueError(f"got {pages.shape[0]} places for {addresses.shape[0]} addresses")
    for i in range(addresses.shape[0]):
        pages[i] = <uint64_t>windows.pointer(addresses[i])
        if pages[i] == 0:
            raise ValueError(f"address {addresses[i]:#x} isn't mapped")


def resolve_all(Store store, const NodeID[::1] nodes):
    """Resolves each node by the store; returns the sum of the pages' places in memory."""
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(nodes.shape[0]):
            total += <uint64_t>resolve(store, nodes[i])
    return total


def resolve_all_plainly(PlainStore store not None, const NodeID[::1] nodes):
    """Does the same by a table without shards."""
    cdef uint64_t total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(nodes.shape[0]):
            total += <uint64_t>_resolve_plainly(store, nodes[i])
    return total


def look_up_all(const uint64_t[::1] pages, const uint64_t[::1] order):
    """Does the same by an array of pointers, in the order of the indices given: the least that a lookup can cost."""
    cdef uint64_t total = 0, count = pages.shape[0]
    cdef Py_ssize_t i
    with nogil:
        for i in range(order.shape[0]):
            if order[i] < count:
                total += pages[order[i]]
    return total


def replace_slots(SegmentAllocator allocator, int size_class, const uint64_t[::1] places):
    """Holds 256 slots, and frees and allocates one of them for each element of `places`, each below 256.

    Returns how many different addresses were held in the end: 256 when all is well. Nobody else may use the allocator
    meanwhile. All slots are given back.
    """
    cdef uint64_t held[256]
    cdef Py_ssize_t i, taken = 0
    try:
        for i in range(256):
            allocator.allocate(size_class, False, &held[i])
            taken += 1
        with nogil:
            for i in range(places.shape[0]):
                allocator.free(held[places[i] & 255])
                allocator.allocate(size_class, False, &held[places[i] & 255])
        return len({held[i] for i in range(256)})
    finally:
        for i in range(taken):
            allocator.free(held[i])


def use_handles(Store store not None, Py_ssize_t times):
    """Reserves, publishes and retires `times` pages without slots; abandons every third, reclaims as it goes.

    For threads that share a table, each step under the store's lock, without the GIL. All is of the current epoch.
    """
    cdef Py_ssize_t i
    cdef uint64_t epoch = store.epochs.current_epoch(), address = 0
    cdef int size_class = 0
    cdef NodeID node
    with nogil:
        for i in range(times):
            hold_lock(store)
            try:
                node = store.table.reserve(1, 0, 0)
                if i % 3 == 0:
                    store.table.abandon(node)
            finally:
                drop_lock(store)
            if i % 3 == 0:
                continue
            store.table.seal(node, <uint32_t>i)
            store.table.mark_verified(node)
            hold_lock(store)
            store.table.publish(node, epoch)
            store.table.retire(node, epoch)
            if i % 3 == 1:
                store.table.reclaim_one(epoch, &address, &size_class)
            drop_lock(store)


@cython.final
cdef class HeldLock:
    """A context manager that holds a store's lock, as if a thread stood still while it holds it."""

    cdef Store store

    def __cinit__(self, Store store not None):
        self.store = store

    def __enter__(self):
        with nogil:
            hold_lock(self.store)

    def __exit__(self, *exception):
        drop_lock(self.store)


@cython.final
cdef class Turnover:
    """One page that every epoch replaces, and its readers: pins, publication, reclaim and reuse, all at full speed.

    The store is a fresh one in memory that nobody else uses. One thread runs `write`, one runs `reclaim` unless the
    writer does that itself, and any number run `read` or `read_old`. Each epoch's page holds a pattern that names the
    epoch; a reader that has the epoch pinned must find its row live or retired later, and the pattern whole. It counts
    anything else as a flaw. crowded: most of the slots for pins are taken and hold nothing back, so that time passes
    between a pin's look at the current epoch and its taking of a slot.
    """

    cdef Store store
    cdef uint64_t *nodes            # of the page of each epoch, from `first` on
    cdef uint64_t first, last       # epochs
    cdef uint64_t freed             # pages
    cdef uint64_t ended             # 1 once the writer has ended

    def __cinit__(self, Store store not None, uint64_t epochs, bint crowded=False):
        cdef int slot
        cdef PinSlot *slots
        self.nodes = NULL
        self.store = store
        self.first = store.epochs.current_epoch() + 1
        self.last = self.first + epochs
        self.freed = self.ended = 0
        self.nodes = <uint64_t *>allocate_zeroed(epochs + 1, sizeof(uint64_t))
        if self.nodes == NULL:
            raise MemoryError("no memory for the nodes of a turnover")
        self.replace(self.first)
        if crowded:
            for _ in range(SLOTS_OF_FIRST + SLOTS_PER_BLOCK - FREE_IN_CROWD):
                slot = store.epochs.pin()
                slots = <PinSlot *>load_seq(&store.epochs.near[slot // SLOTS_PER_BLOCK])
                store_seq(&slots[slot % SLOTS_PER_BLOCK].epoch, UINT64_MAX - 1)

    def __dealloc__(self):
        release(self.nodes)

    cdef int replace(self, uint64_t epoch) except -1 nogil:
        """Commits an epoch, in the steps of a write set and of a store's publication."""
        cdef uint64_t address = 0
        cdef NodeID node
        cdef uint64_t *words
        cdef int i
        lock_without_gil(self.store.lock)
        try:
            self.store.allocator.allocate(0, False, &address)
            node = self.store.table.reserve(1, 0, address)
        finally:
            PyThread_release_lock(self.store.lock)
        words = <uint64_t *>self.store.windows.pointer(address)
        for i in range(PAGE_WORDS):
            words[i] = pattern(epoch, i)
        self.store.table.seal(node, <uint32_t>epoch)
        lock_without_gil(self.store.lock)
        self.store.table.publish(node, epoch)
        if epoch > self.first:
            self.store.table.retire(self.nodes[epoch - self.first - 1], epoch)
        PyThread_release_lock(self.store.lock)
        store_release(&self.nodes[epoch - self.first], node)
        self.store.epochs.advance(epoch)
        return 0

    cdef bint shows(self, uint64_t epoch) noexcept nogil:
        """Whether the page of an epoch, which is pinned, is there and whole."""
        cdef NodeID node = load_acquire(&self.nodes[epoch - self.first])
        cdef Row *row = self.store.table.row(handle_of(node))
        cdef uint64_t word = load_acquire(&row.word)
        cdef const uint64_t *words
        cdef int i
        if (word & WORD_TAG) != tag_of(node) or state_of(word) < STATE_LIVE or row.crc != <uint32_t>epoch:
            return False
        if not load_acquire(&row.birth) <= epoch < load_acquire(&row.retire):
            return False
        words = <const uint64_t *>self.store.windows.pointer(load_relaxed(&row.address))
        for i in range(PAGE_WORDS):
            if words[i] != pattern(epoch, i):
                return False
        return True

    def write(self, bint alone):
        """Commits all epochs, as fast as pages are freed; with `alone`, frees what no pin sees after each of them."""
        cdef uint64_t epoch
        try:
            for epoch in range(self.first + 1, self.last + 1):
                with nogil:
                    while not alone and epoch - self.first > load_acquire(&self.freed) + MOST_BEHIND:
                        yield_processor()
                    self.replace(epoch)
                if alone:
                    fetch_add(&self.freed, self.store.reclaim())
            with nogil:         # it keeps the GIL when there is little to free
                pass
        finally:
            store_release(&self.ended, 1)

    def reclaim(self):
        """Frees what no pin sees, without a pause, until the writer has ended."""
        while not load_acquire(&self.ended):
            fetch_add(&self.freed, self.store.reclaim())
            with nogil:         # it keeps the GIL when there is little to free
                pass

    def read(self, int held):
        """Pins the current epoch again and again, `held` pins at a time, and looks through each as it begins and ends.

        Returns how many pins there were, and how many flaws.
        """
        cdef int slots[MOST_HELD]
        cdef Epochs epochs = self.store.epochs
        cdef uint64_t pins = 0, flaws = 0
        cdef int taken = 0, at = 0
        if not 0 < held <= MOST_HELD:
            raise ValueError(f"{held} pins: expected 1 to {MOST_HELD}")
        try:
            with nogil:
                while not load_acquire(&self.ended):
                    if taken == held:
                        flaws += not self.shows(epochs.pinned_epoch(slots[at]))
                        epochs.unpin(slots[at])
                        slots[at] = slots[taken - 1]
                        taken -= 1
                    slots[taken] = epochs.pin()
                    taken += 1
                    flaws += not self.shows(epochs.pinned_epoch(slots[taken - 1]))
                    pins += 1
                    at = <int>(pins * 31 % <uint64_t>held)
        finally:
            for at in range(taken):
                flaws += not self.shows(epochs.pinned_epoch(slots[at]))
                epochs.unpin(slots[at])
        return pins, flaws

    def read_old(self, uint64_t delay):
        """Pins the oldest epoch that isn't refused yet, up to `delay` loads after a look at the horizon.

        Also pins, in turn with that, epochs that another pin of this thread protects; these must not be refused.
        Returns how many pins there were, how many were refused, and how many flaws.
        """
        cdef Epochs epochs = self.store.epochs
        cdef uint64_t epoch, rounds = 0, refused = 0, flaws = 0
        cdef int guard = -1, slot
        while not load_acquire(&self.ended):
            try:
                with nogil:
                    while not load_acquire(&self.ended):
                        rounds += 1
                        if rounds % 4 == 0:
                            guard = epochs.pin()
                            epoch = epochs.pinned_epoch(guard)
                        else:
                            epoch = max(load_seq(&epochs.horizon), self.first)
                            for _ in range(<int>(rounds * 31 % (delay + 1))):
                                load_seq(&epochs.current)
                        slot = epochs.pin_at(epoch)
                        if guard >= 0:
                            epochs.unpin(guard)
                            guard = -1
                        for _ in range(LOOKS_AT_OLD):
                            if not self.shows(epoch):
                                flaws += 1
                                break
                        epochs.unpin(slot)
            except ValueError:
                refused += 1
                if guard >= 0:
                    flaws += 1
                    epochs.unpin(guard)
                    guard = -1
        return rounds, refused, flaws

    def empty(self):
        """Retires the last page and frees what is left, once all threads have ended; returns the pages freed in all."""
        cdef uint64_t epoch = self.store.epochs.current_epoch() + 1
        self.store.table.retire(self.nodes[epoch - 1 - self.first], epoch)
        self.store.epochs.advance(epoch)
        return load_acquire(&self.freed) + self.store.reclaim()


cdef inline uint64_t pattern(uint64_t epoch, int i) noexcept nogil:
    return (epoch + i) * 0x9E3779B97F4A7C15ULL
