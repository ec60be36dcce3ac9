"""Slots of seven size classes in windows: which bytes of which window are used, which are free.

A segment is 64 slots of one class: one word of the window's bitmap. Two summary levels above it make finding a
free slot O(1).

    field                          written by                         read by            order
    everything of the allocator    whoever holds the store's lock     the same           the lock
    and its extents

Nothing here is read without the lock, so the whole is thread-safe and needs no atomics.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.pages.page cimport SIZE_CLASSES

cdef enum:
    NO_EXTENT = 0xFFFFFFFF


cdef struct Extent:                 # the slots of one window; all of one class
    uint32_t window
    uint32_t next                   # the next extent of this class, NO_EXTENT after the last
    int size_class
    uint64_t first_offset           # of slot 0
    uint64_t slots                  # usable now
    uint64_t limit                  # slots when grown to the end of the window
    uint64_t used                   # slots in use
    uint64_t *free_words            # bit set: slot free (bit 63 of a word is its highest slot)
    uint64_t *free_segments         # bit set: the word has a free slot
    uint64_t *free_groups           # bit set: the word of free_segments isn't zero


@cython.final
cdef class SegmentAllocator:
    cdef Extent *extents            # one for each window it knows, in the order of attach
    cdef uint32_t extent_count, extent_room
    cdef uint32_t first_extents[SIZE_CLASSES]  # of each class, NO_EXTENT when it has none
    cdef uint32_t last_extents[SIZE_CLASSES]
    cdef uint32_t open_extents[SIZE_CLASSES]   # the first one that may have a free slot: allocation looks there
    cdef uint32_t *extent_of_window            # 1 + the extent's index, 0 for a window it doesn't know
    cdef uint32_t window_room                  # how many windows that has entries for
    cdef dict offers                           # windows that growth gave and that couldn't be attached yet, by class
    cdef object growth

    # Gives a free slot. If need be, makes room by growing a window or asking for a new one; with `spends_reserve` that
    # may use the reserve of the disk. Raises OSError when the disk is full, MemoryError, CapacityError.
    cdef int allocate(self, int size_class, bint spends_reserve, uint64_t *address) except -1 nogil
    # Returns a slot. Raises RuntimeError for one that isn't in use.
    cdef int free(self, uint64_t address) except -1 nogil
    # Marks a slot as used while the bitmaps are rebuilt from rows. Raises CorruptionError (xtree.errors) for an
    # address that is misaligned, outside its file or already used.
    cdef int occupy(self, int size_class, uint64_t address) except -1 nogil
