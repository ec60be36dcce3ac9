"""The object table: NodeID -> where the page is, when it was born and retired.

One row (row.pxd) for each handle, in slabs that never move. States go free -> reserved -> live -> retired -> free; a
handle's tag moves once a life, at the reservation. The rows are in up to 64 shards, which give a table its room; a
shard has no lock and no list of its own (docs/results/choices.md: why not).

    field               written by                                 read by              order
    slabs[shard]        reserve, restore                           any thread           release / acquire
    slabs[shard][i]     the same, once, and before the mark that   any thread           release / acquire
                        covers its rows; copied when a directory
                        is outgrown
    marks[shard]        reserve, restore                           any thread           release / acquire
    high_water          reserve, restore                           any thread           release / acquire
    counts              whoever changes a row's state              any thread           relaxed: each by itself
    the rest of lists   the same                                   the same             plain

Whoever changes anything holds the store's lock; mark_verified and seal, which belong to the row, need none.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.base.atomics cimport load_acquire
from xtree.persistence.pages.node_id cimport MAX_SHARDS, NodeID
from xtree.persistence.pages.row cimport (
    STATE_FREE, STATE_LIVE, STATE_RESERVED, STATE_RETIRED, WORD_TAG, WORD_VERIFIED, Row, class_of, kind_of, state_of,
)

cdef extern from *:                 # of Cython's own
    bint likely(bint condition) noexcept nogil

cdef enum:
    BLOCK_BITS = 7                  # rows that one entry of a directory leads to
    BLOCK_ROWS = 128
    SLAB_BITS = 16                  # rows of the largest slab
    SLAB_ROWS = 65536
    MAX_SLABS = 16384               # of that size: 2**30 rows a shard, 2**36 in all, for 256 TiB of the smallest pages


cdef struct RowList:                # first in, first out
    uint64_t head, tail             # handles, 0 when it is empty
    uint64_t count


@cython.final
cdef class ObjectTable:
    # The directory of each shard in use, a uint64_t *: for each block of rows a Row *, 0 until there is a slab. A full
    # directory is replaced by a larger copy, and stays until the end for whoever is still looking into it.
    cdef uint64_t slabs[MAX_SHARDS]
    cdef uint64_t marks[MAX_SHARDS]  # of each shard: every slot given out is below it
    cdef uint64_t high_water        # one more than the handles given out: no walk meets as many pages
    cdef uint64_t max_shards, shard_slots, shard_rows    # limits: fixed
    cdef RowList free
    cdef RowList retired_rows       # in the order of their retire epochs
    cdef uint64_t live_count, reserved_count

    cdef inline Row *row(self, uint64_t handle) noexcept nogil:
        """The row of a handle, NULL for one that was never given out (any 56-bit value may be asked for)."""
        if likely(handle - 1 < load_acquire(&self.marks[0]) - 1):   # in the first shard; 0 is above every mark
            return (<Row *>load_acquire(&(<uint64_t *>load_acquire(&self.slabs[0]))[handle >> BLOCK_BITS])
                    + (handle & (BLOCK_ROWS - 1)))
        return self.row_of_shard(handle)

    # The same for a handle of any shard.
    cdef Row *row_of_shard(self, uint64_t handle) noexcept nogil
    # The next handle that was given out, shard by shard: the first of all after 0, and 0 after the last.
    cdef uint64_t next_handle(self, uint64_t handle) noexcept nogil
    # How many handles were given out in the shards before each one, and in all: MAX_SHARDS + 1 numbers.
    cdef void number_handles(self, uint64_t *before) noexcept nogil

    # For whoever holds the store's lock. Those that are noexcept allocate nothing, so they cannot fail. `reserve`
    # raises MemoryError, CapacityError.
    cdef NodeID reserve(self, int kind, int size_class, uint64_t address) except 0 nogil
    # Marks a reserved row's page as finished, with its CRC. Without the lock: the row is its write set's.
    cdef void seal(self, NodeID node, uint32_t crc) noexcept nogil
    cdef void publish(self, NodeID node, uint64_t epoch) noexcept nogil
    # Epochs must not fall from one call to the next.
    cdef void retire(self, NodeID node, uint64_t epoch) noexcept nogil
    # reserved -> free: an aborted reservation. The tag stays used up.
    cdef void abandon(self, NodeID node) noexcept nogil
    # Takes the first retired row, if its retire epoch is <= horizon, off the list and frees its handle; fills the
    # address and the class of the slot, which the caller gives back. False when there is no such row.
    cdef bint reclaim_one(self, uint64_t horizon, uint64_t *address, int *size_class) noexcept nogil
    # Sets the verified bit if the row still carries the node's tag. Any thread, without the lock.
    cdef void mark_verified(self, NodeID node) noexcept nogil

    # For recovery, before anyone else sees the table. Counts all slots of a shard below `mark` as handles that were
    # given out; their rows are zero, and on no list before rebuild_lists. Raises MemoryError, CapacityError.
    cdef int cover(self, uint64_t shard, uint64_t mark) except -1 nogil
    # Frees a row that is on no list: its word keeps only the tag.
    cdef void free_row(self, uint64_t handle, Row *row) noexcept nogil
    # Makes lists and counts anew, from rows that are free or live.
    cdef void rebuild_lists(self) noexcept nogil
    # In a forked child, where nobody is writing: makes every page unclaimed.
    cdef void let_claims_go(self) noexcept nogil


cdef int bad_row(uint64_t handle, const char *why) except -1 with gil
