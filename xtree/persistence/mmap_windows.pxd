"""Windows: large mappings of data files, or of anonymous memory, behind small logical ids.

A page's address is one word, `window << 48 | offset`. A window's base never changes while it is mapped and a
window is never unmapped while the store is open, so a pointer is one load and one addition.

    field        written by                            read by                   order
    bases[w]     map_window (the lock held), once      any thread, no lock       release / acquire
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.atomics cimport load_acquire

cdef enum:
    OFFSET_BITS = 48
    MAX_WINDOWS = 65536


cdef inline uint64_t make_address(uint32_t window, uint64_t offset) noexcept nogil:
    return <uint64_t>window << OFFSET_BITS | offset


cdef inline uint32_t window_of(uint64_t address) noexcept nogil:
    return <uint32_t>(address >> OFFSET_BITS)


cdef inline uint64_t offset_of(uint64_t address) noexcept nogil:
    return address & ((<uint64_t>1 << OFFSET_BITS) - 1)


@cython.final
cdef class Windows:
    cdef uint64_t *bases            # char * of each window, 0 while it isn't mapped
    cdef uint64_t *bytes            # how much address space each window reserves
    cdef readonly uint32_t count
    cdef list files                 # per window: the object whose fileno() is mapped, None for anonymous memory
    cdef readonly bint writable

    # Maps a window that isn't mapped yet; the GIL makes one of several threads do it. Raises OSError, ValueError.
    cdef int map_window(self, uint32_t window) except -1
    # Unmaps and forgets every window. Nothing may read through a pointer any more.
    cpdef int unmap_all(self) except -1

    cdef inline char *pointer(self, uint64_t address) noexcept nogil:
        """The byte at an address; NULL when its window isn't mapped yet."""
        cdef char *base = <char *>load_acquire(&self.bases[address >> OFFSET_BITS])
        return NULL if base == NULL else base + (address & ((<uint64_t>1 << OFFSET_BITS) - 1))
