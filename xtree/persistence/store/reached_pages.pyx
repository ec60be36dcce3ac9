"""Reached pages: what the structures of an epoch hold, and what none of them does. docs: reached_pages.pxd."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.base.memory cimport allocate_zeroed, release
from xtree.persistence.pages.node_id cimport MAX_SHARDS, NodeID, handle_of, make_node_id, shard_of, slot_of
from xtree.persistence.pages.object_table cimport STATE_LIVE, WORD_TAG, Row, kind_of, state_of
from xtree.persistence.store.store cimport Store

from xtree.errors import CorruptionError


cdef class ReachedPages:
    """A bit for each handle given out before this was made, after the epoch was pinned: so for every page of it."""

    def __cinit__(self, Store store not None):
        self.bits = NULL
        self.store = store
        store.table.number_handles(self.before)
        self.bits = <uint64_t *>allocate_zeroed(self.before[MAX_SHARDS] // 64 + 1, sizeof(uint64_t))
        if self.bits == NULL:
            raise MemoryError("no memory for a bit for each handle")

    def __dealloc__(self):
        release(self.bits)

    cdef int reach(self, NodeID node) except -1 nogil:
        cdef uint64_t shard = shard_of(handle_of(node))
        cdef uint64_t number = self.before[shard] + slot_of(handle_of(node)) - 1
        cdef uint64_t bit = <uint64_t>1 << (number & 63)
        if slot_of(handle_of(node)) == 0 or number >= self.before[shard + 1]:
            with gil:
                raise CorruptionError(f"page {node:#x}: expected a handle that was given out before it was reached")
        if self.bits[number >> 6] & bit:
            return 1
        self.bits[number >> 6] |= bit
        return 0

    def reach_page(self, NodeID node):
        """Notes that a page was reached; returns whether it had been before.

        Raises CorruptionError when it isn't there.
        """
        if not self.store.table.resolves(node):
            raise CorruptionError(f"node {node:#x} isn't there")
        return bool(self.reach(node))

    def lost(self, uint64_t epoch, kinds=None):
        """How many of the pages visible at a pinned epoch weren't reached, and the NodeID of the first, 0 for none.

        kinds: the kinds of pages to look at; None: all. Writers may go on meanwhile: what they make isn't visible at
        the epoch.
        """
        cdef uint8_t wanted[256]
        cdef uint64_t handle = self.store.table.next_handle(0), shard, number, word, birth, retire, count = 0
        cdef NodeID first = 0
        cdef Row *row
        memset(wanted, kinds is None, sizeof(wanted))
        for kind in kinds or ():
            wanted[<uint8_t>kind] = 1
        with nogil:
            while handle:
                row = self.store.table.row(handle)
                word = load_acquire(&row.word)
                retire = load_acquire(&row.retire)      # before birth, as in is_visible
                birth = load_acquire(&row.birth)
                shard = shard_of(handle)
                number = self.before[shard] + slot_of(handle) - 1
                if (state_of(word) >= STATE_LIVE and birth <= epoch < retire and number < self.before[shard + 1]
                        and wanted[kind_of(word)] and not self.bits[number >> 6] >> (number & 63) & 1):
                    count += 1
                    if first == 0:
                        first = make_node_id(handle, word & WORD_TAG)
                handle = self.store.table.next_handle(handle)
        return count, first
