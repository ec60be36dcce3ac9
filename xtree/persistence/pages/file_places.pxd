"""Which window holds which data file: turns the file numbers in rows and deltas into addresses."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.pages.mmap_windows cimport make_address
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes

cdef enum:
    FIRST_SLOT = 4096               # right after the header of the file


cdef struct FilePlace:
    uint32_t file_number
    uint32_t window
    uint64_t size_class


@cython.final
cdef class FilePlaces:
    cdef FilePlace *places          # by rising file number
    cdef Py_ssize_t count
    cdef Py_ssize_t last            # the one found last: most rows name the file of the row before
    cdef uint64_t window_bytes      # no slot ends after this offset
    cdef readonly uint64_t slots    # that fit into all files at their largest

    cdef inline const char *locate(self, uint32_t file_number, uint64_t size_class, uint64_t offset,
                                   uint64_t *address) noexcept nogil:
        """Fills the address of a slot; returns what is wrong with the slot, NULL when nothing is. For one thread."""
        cdef uint64_t size
        if self.last >= self.count or self.places[self.last].file_number != file_number:
            self.last = self.find(file_number)
            if self.last == self.count:
                return "in a data file that isn't there"
        if size_class >= SIZE_CLASSES or self.places[self.last].size_class != size_class:
            return "in a data file of another size class"
        size = class_bytes(<int>size_class)
        if offset < FIRST_SLOT or self.window_bytes < size or offset > self.window_bytes - size:
            return "in a slot outside its data file"
        if (offset - FIRST_SLOT) & (size - 1):
            return "in a slot that is misaligned"
        address[0] = make_address(self.places[self.last].window, offset)
        return NULL

    # The index of a file in `places`, `count` when it has none.
    cdef Py_ssize_t find(self, uint32_t file_number) noexcept nogil
