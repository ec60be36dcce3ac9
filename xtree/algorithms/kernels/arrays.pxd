"""Arrays: numpy arrays on their way in and out of code that runs without the GIL."""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from xtree.persistence.base.atomics cimport load_relaxed


# Borrows the memory of a C-contiguous array until PyBuffer_Release; returns how many rows of `row_bytes` it holds.
# Raises BufferError for one that is not contiguous, ValueError for a size that is not a multiple of `row_bytes`.
cdef Py_ssize_t borrow(object array, Py_buffer *view, Py_ssize_t row_bytes) except -1
# The first byte of an array just made here, which its owner keeps alive.
cdef char *data_of(object array) except NULL

# A number that another thread may be changing, read once.
cdef inline double read_once(const double *shared) noexcept nogil:
    cdef uint64_t word = load_relaxed(<const uint64_t *>shared)
    cdef double number
    memcpy(&number, &word, sizeof(double))
    return number


# Copies a box that another thread may be changing. Returns whether the copy may be stored: finite, and no min above its
# max. Callers work on the copy, which is what was checked.
cdef bint read_box(const double *shared, int dims, double *box) noexcept nogil
# Raises InvalidBoxError for a row that was a valid box when the call began and was changed since.
cdef int raise_changed(int64_t row) except -1 with gil

# Raises MemoryError when `size` bytes of results are more than the system has left.
cdef int require_memory(double size) except -1
# take_arena returns one that an earlier call has used, or else a new one; keep_arena puts it back. With the GIL.
cdef Arena take_arena()
cdef int keep_arena(Arena arena) except -1

# Raises MemoryError, from code without the GIL.
cdef int raise_no_memory() except -1 with gil


@cython.final
cdef class Arena:
    """Memory for an unknown number of results: it grows without the GIL and becomes an array at the end."""

    cdef char *data
    cdef Py_ssize_t used, room      # bytes

    # Makes room for `more` bytes after those used; `data` may move. Raises MemoryError, also when the system has less
    # memory left than that: it would grant the memory, and end the process once it is used.
    cdef int grow(self, Py_ssize_t more) except -1 nogil
    # Returns the bytes used as a new array; the arena must not be written to afterwards.
    cdef object to_array(self, object dtype)

    cdef inline int need(self, Py_ssize_t more) except -1 nogil:
        return self.grow(more) if self.room - self.used < more else 0
