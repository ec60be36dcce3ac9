"""The one place where Cython code asks for memory, so that tests can make any allocation fail.

Every function may be called without the GIL. A NULL from the allocating ones means out of memory (or an
injected failure); the caller raises MemoryError.
"""


cdef void *allocate(size_t size) noexcept nogil
cdef void *allocate_zeroed(size_t count, size_t size) noexcept nogil
cdef void *reallocate(void *block, size_t size) noexcept nogil
cdef void release(void *block) noexcept nogil
# `count` cache lines of 64 bytes, zeroed and aligned to 64 bytes; given back with release_lines.
cdef void *allocate_lines(size_t count) noexcept nogil
cdef void release_lines(void *lines) noexcept nogil
# Says that all of a large block is going to be written. A hint, which makes that faster where the system supports it.
cdef void prefault(void *start, size_t bytes) noexcept nogil
