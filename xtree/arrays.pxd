"""Arrays: numpy arrays on their way in and out of code that runs without the GIL."""

cimport cython


# Borrows the memory of a C-contiguous array until PyBuffer_Release; returns how many rows of `row_bytes` it holds.
# Raises BufferError for one that isn't contiguous, ValueError for a size that is no number of rows.
cdef Py_ssize_t borrow(object array, Py_buffer *view, Py_ssize_t row_bytes) except -1
# The first byte of an array just made here, which its owner keeps alive.
cdef char *data_of(object array) except NULL

# Raises MemoryError, from code without the GIL.
cdef int raise_no_memory() except -1 with gil


@cython.final
cdef class Arena:
    """Results of unknown number: memory that grows without the GIL and becomes an array at the end."""

    cdef char *data
    cdef Py_ssize_t used, room      # bytes

    # Makes room for so many bytes behind those used; `data` may move. Raises MemoryError.
    cdef int grow(self, Py_ssize_t more) except -1 nogil
    # What was used as a new array; the arena is not to be written to afterwards.
    cdef object to_array(self, object dtype)

    cdef inline int need(self, Py_ssize_t more) except -1 nogil:
        return self.grow(more) if self.room - self.used < more else 0
