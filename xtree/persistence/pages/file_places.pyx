"""Which window holds which data file. docs: file_places.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.base.memory cimport allocate, release
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes


cdef class FilePlaces:
    """The data files by number: {file number: (window, size class)}, none longer than `window_bytes`."""

    def __cinit__(self, dict files, uint64_t window_bytes):
        self.places = NULL
        self.window_bytes = window_bytes
        self.places = <FilePlace *>allocate(len(files) * sizeof(FilePlace))
        if self.places == NULL:
            raise MemoryError("no memory for the table of data files")
        for number, (window, size_class) in sorted(files.items()):
            if not 0 <= size_class < SIZE_CLASSES:
                raise ValueError(f"data file {number}: no size class {size_class}")
            self.places[self.count].file_number = number
            self.places[self.count].window = window
            self.places[self.count].size_class = size_class
            self.count += 1
            self.slots += window_bytes // class_bytes(size_class)

    def __dealloc__(self):
        release(self.places)

    cdef Py_ssize_t find(self, uint32_t file_number) noexcept nogil:
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.places[middle].file_number < file_number:
                low = middle + 1
            else:
                high = middle
        return low if low < self.count and self.places[low].file_number == file_number else self.count
