"""Epochs and pins: which state of the store each reader is looking at.

    field            written by                           read by                          order
    current          the publisher (store's lock)         any thread                       seq_cst
    horizon          the reclaimer (store's lock)         pin                              seq_cst
    slots[i].epoch   the thread that pinned slot i        the reclaimer's scan             seq_cst store, seq_cst load
    slots[i].owner   pin and unpin, by compare-exchange   pin                              seq_cst
    blocks[b]        pin, by compare-exchange, once       any thread                       seq_cst
    first_open       pin, unpin                           pin                              relaxed: only a hint

Blocks of slots never move and are only freed with the object.
"""

cimport cython
from libc.stdint cimport uint64_t

cdef enum:
    SLOTS_PER_BLOCK = 256
    MAX_BLOCKS = 4096               # about a million pins


cdef struct PinSlot:                # one cache line, so that two readers never share one
    uint64_t epoch                  # pinned epoch; 2**64 - 1 while nothing is pinned
    uint64_t owner                  # 1 while taken
    uint64_t since_ns               # monotonic clock at the pin
    uint64_t spare[5]


@cython.final
cdef class Epochs:
    cdef uint64_t current
    cdef uint64_t horizon
    cdef uint64_t *blocks           # PinSlot * of each block, 0 until it is used
    cdef uint64_t block_count
    cdef uint64_t first_open        # the block where the search for a slot begins

    # Pins the current epoch and returns the slot's number. Raises MemoryError, CapacityError.
    cdef int pin(self) except -1 nogil
    # Pins a given epoch that is already protected by another pin. Raises ValueError below the reclaimer's horizon, or
    # above the current epoch.
    cdef int pin_at(self, uint64_t epoch) except -1 nogil
    cdef void unpin(self, int slot) noexcept nogil
    cdef uint64_t pinned_epoch(self, int slot) noexcept nogil
    cdef uint64_t current_epoch(self) noexcept nogil
    # Moves the current epoch on; it never goes back.
    cdef void advance(self, uint64_t epoch) noexcept nogil
    # The smallest pinned epoch, or the current one.
    cdef uint64_t min_active(self) noexcept nogil
    # The same for the reclaimer, which may then free what was retired at or before it: pins below it are refused from
    # now on.
    cdef uint64_t reclaim_horizon(self) noexcept nogil
