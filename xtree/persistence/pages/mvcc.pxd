"""Epochs and pins: which state of something each reader is looking at.

A store has two of these: `epochs`, what commits publish, and `flights`, whose epoch is the generation of the mappings.

    field              written by                           read by                  order
    current            advance: the publisher, with the     any thread               seq_cst
                       store's lock; of flights the recycler
    horizon            the reclaimer (store's lock)         pin_at                   seq_cst
    slots[i].epoch     pin, by compare-exchange; renew,     pin, the scan, stats     seq_cst; unpin stores with release
                       unpin: whoever has the slot
    slots[i].owner     pin, unpin: whoever has the slot     renew, for its own       relaxed: only a thread's own slots
                                                                                     matter to it
    slots[i].kept      keep: whoever has the slot           forget_other_threads     relaxed: in a child, alone
    slots[i].since_ns  pin, unpin: whoever has the slot     stats                    relaxed: a figure for people
    near[b], far,      pin, by compare-exchange, once       any thread               seq_cst
    far[b]
    block_count        pin, by compare-exchange             any thread               seq_cst
    first_open         pin, unpin                           pin                      relaxed: only a hint
    timed, slow_ns     __cinit__                            pin, stats               plain: they never change

Blocks of slots never move and are only freed with the object.
"""

cimport cython
from libc.stdint cimport uint64_t

cdef enum:
    SLOTS_PER_BLOCK = 256
    SLOTS_OF_FIRST = 32             # of the first block: most stores never have more pins at once
    NEAR_BLOCKS = 16
    MAX_BLOCKS = 4096               # about a million pins


cdef struct PinSlot:                # one cache line, so that two readers never share one
    uint64_t epoch                  # pinned epoch; 2**64 - 1 while the slot is free
    uint64_t owner                  # the thread that took it, 0 while it is free
    uint64_t since_ns               # monotonic clock at the pin; 2**64 - 1 while it isn't known
    uint64_t kept                   # 1: the pin belongs to an object, not to a call of the thread
    uint64_t spare[4]


@cython.final
cdef class Epochs:
    cdef uint64_t current
    cdef uint64_t horizon
    cdef uint64_t near[NEAR_BLOCKS]  # PinSlot * of the first blocks, each 0 until it is used
    cdef uint64_t far               # uint64_t *: the same of the other blocks, 0 until one is used
    cdef uint64_t block_count
    cdef uint64_t first_open        # the block where the search for a slot begins
    cdef bint timed                 # pins note when they began
    cdef uint64_t slow_ns           # a pin older than this is a slow reader's

    # Pins the current epoch and returns the slot's number. Raises MemoryError, CapacityError.
    cdef int pin(self) except -1 nogil
    # Pins a given epoch that is already protected by another pin. Raises ValueError below the reclaimer's horizon, or
    # above the current epoch.
    cdef int pin_at(self, uint64_t epoch) except -1 nogil
    cdef void unpin(self, int slot) noexcept nogil
    # Says whether a pin belongs to an object, which any thread may release, or to a call of its thread.
    cdef void keep(self, int slot, bint kept) noexcept nogil
    # Moves the calling thread's pin to the current epoch, if it has exactly one: with two, the outer one may be in use.
    cdef void renew(self) noexcept nogil
    # Whether the calling thread has a pin.
    cdef bint is_pinned_here(self) noexcept nogil
    cdef uint64_t pinned_epoch(self, int slot) noexcept nogil
    cdef uint64_t current_epoch(self) noexcept nogil
    # Moves the current epoch on; it never goes back.
    cdef void advance(self, uint64_t epoch) noexcept nogil
    # The smallest pinned epoch, or the current one.
    cdef uint64_t min_active(self) noexcept nogil
    # The same for the reclaimer, which may then free what was retired at or before it: pins below it are refused from
    # now on.
    cdef uint64_t reclaim_horizon(self) noexcept nogil
