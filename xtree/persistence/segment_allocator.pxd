"""Slots of seven size classes in windows: which bytes of which window are used, which are free.

A segment is 64 slots of one class: one word of the window's bitmap. Two summary levels above it make finding a
free slot O(1). The store's lock guards every method; nothing here is read without it.
"""

from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.page cimport SIZE_CLASSES


cdef struct Extent:                 # the slots of one window; all of one class
    uint32_t window
    int size_class
    uint64_t first_offset           # of slot 0
    uint64_t slots                  # usable now
    uint64_t limit                  # slots when grown to the end of the window
    uint64_t used                   # slots in use
    uint64_t top                    # one above the highest slot ever used
    uint64_t *free_words            # bit set: slot free (bit 63 of a word is its highest slot)
    uint64_t *free_segments         # bit set: the word has a free slot
    uint64_t *free_groups           # bit set: the word of free_segments isn't zero


cdef class SegmentAllocator:
    cdef Extent *extents            # one for each window it knows
    cdef uint32_t extent_count, extent_room
    cdef uint32_t open_extents[SIZE_CLASSES]   # where allocation of a class looks first
    cdef object growth

    # Gives a free slot; makes room by growing a window or asking for a new one. Raises OSError when the disk is
    # full, MemoryError, CapacityError.
    cdef int allocate(self, int size_class, uint64_t *address) except -1 nogil
    # Returns a slot. Raises RuntimeError for one that isn't in use.
    cdef int free(self, uint64_t address) except -1 nogil
    # Marks a slot as used while the bitmaps are rebuilt from rows. Raises CorruptionError (xtree.errors) for an
    # address that is misaligned, outside its file or already used.
    cdef int occupy(self, int size_class, uint64_t address) except -1 nogil
