"""CRC32C of pages: equal to the crc32c package, callable without the GIL."""

from libc.stdint cimport uint32_t

cdef enum:
    CRC_OFFSET = 4      # of the CRC field in a page's prefix
    CRC_END = 8


# The CRC32C of n bytes, continuing from `crc` (0 at the start).
cdef uint32_t crc32c(const void *data, size_t n, uint32_t crc) noexcept nogil
# The CRC32C of a page's slot with the CRC field taken as zero. `bytes` is at least 8.
cdef uint32_t page_crc(const char *page, size_t bytes) noexcept nogil
