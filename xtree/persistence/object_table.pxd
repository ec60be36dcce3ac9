"""The object table: NodeID -> where the page is, when it was born and retired.

One row a handle, one cache line a row, in slabs whose addresses never move. States go
free -> reserved -> live -> retired -> free; a handle's tag moves once a life, at the reservation.

    field               written by                                 read by              order
    slabs[i]            reserve, restore (store's lock), once      any thread           release / acquire
    high_water          reserve, restore (store's lock)            any thread           release / acquire
    row.word            reserve, publish, retire, free (lock);     any thread           release / acquire
                        verified bit: any reader (exchange)
    row.address         reserve, relocate (lock)                   any thread           relaxed, ordered by word
    row.birth, .retire  reserve, publish, retire (lock)            under the lock, or   release / acquire
                                                                   with a pin
    row.crc, .next      seal, the lists (lock)                     lock, or with a pin  plain, ordered by word
    row.log_number      the leader, when it logs the page; reserve leader               plain
    row.claimed         writers (compare-exchange), reserve        writers              seq_cst
    row.made_at         the write set that reserved the row        the same one         plain
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from xtree.persistence.atomics cimport load_acquire
from xtree.persistence.node_id cimport NodeID, TAG_BITS

cdef enum:
    SLAB_BITS = 16                  # rows a slab: 4 MiB of address space, touched as it is used
    SLAB_ROWS = 65536
    MAX_SLABS = 65536
    # row.word: [7:0] tag, [8] verified, [11:9] state, [23:16] kind, [31:24] size class
    WORD_VERIFIED = 0x100
    WORD_TAG = 0xFF
    STATE_SHIFT = 9
    STATE_MASK = 0xE00
    KIND_SHIFT = 16
    CLASS_SHIFT = 24
    STATE_FREE = 0
    STATE_RESERVED = 1
    STATE_LIVE = 2
    STATE_RETIRED = 3


cdef struct Row:
    uint64_t word
    uint64_t address
    uint64_t birth                  # 2**64 - 1 while reserved
    uint64_t retire                 # 2**64 - 1 until it is retired
    uint64_t next                   # handle behind this one in the free list or the retired list, 0 at its end
    uint32_t crc                    # of the page, known when it is sealed
    uint32_t log_number             # the log that the page can be rebuilt from, 0: none, it was flushed
    uint64_t claimed                # 1 while a write set is going to retire the page; no second one may
    uint64_t made_at                # while reserved: its place in the list of the write set that made it


cdef inline int state_of(uint64_t word) noexcept nogil:
    return <int>((word & STATE_MASK) >> STATE_SHIFT)


cdef inline int kind_of(uint64_t word) noexcept nogil:
    return <int>((word >> KIND_SHIFT) & 0xFF)


cdef inline int class_of(uint64_t word) noexcept nogil:
    return <int>((word >> CLASS_SHIFT) & 0xFF)


@cython.final
cdef class ObjectTable:
    cdef uint64_t *slabs            # Row * of each slab, 0 until it is used
    cdef uint64_t high_water        # every handle in use is below it; handle 0 is never given out
    cdef uint64_t free_head, free_tail, free_count           # first in, first out
    cdef uint64_t retired_head, retired_tail, retired_count  # in the order of their retire epochs
    cdef uint64_t live_count, reserved_count

    cdef inline Row *row(self, uint64_t handle) noexcept nogil:
        """The row of a handle, NULL for one that was never given out (any 56-bit value may be asked for)."""
        if handle == 0 or handle >= load_acquire(&self.high_water):
            return NULL
        return <Row *>load_acquire(&self.slabs[handle >> SLAB_BITS]) + (handle & (SLAB_ROWS - 1))

    # All of these are called with the store's lock held. Those that are noexcept can't fail: they allocate nothing.
    # Raises MemoryError, CapacityError.
    cdef NodeID reserve(self, int kind, int size_class, uint64_t address) except 0 nogil
    # Marks a reserved row's page as finished, with its CRC.
    cdef void seal(self, NodeID node, uint32_t crc) noexcept nogil
    cdef void publish(self, NodeID node, uint64_t epoch) noexcept nogil
    cdef void retire(self, NodeID node, uint64_t epoch) noexcept nogil
    # reserved -> free: an aborted reservation. The tag stays used up.
    cdef void abandon(self, NodeID node) noexcept nogil
    # Takes the first retired row whose retire epoch is <= horizon off the list and frees its handle; fills the address
    # and the class of the slot that the caller gives back. False when there is none.
    cdef bint reclaim_one(self, uint64_t horizon, uint64_t *address, int *size_class) noexcept nogil
    # Sets the verified bit if the row still carries the node's tag.
    cdef void mark_verified(self, NodeID node) noexcept nogil
