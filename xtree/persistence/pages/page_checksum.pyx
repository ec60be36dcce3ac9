"""CRC32C of pages. The processor is asked once, at import, whether it has the instruction."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

cdef extern from "crc32c.h" nogil:
    void crc32c_setup() noexcept
    uint32_t crc32c_update(uint32_t crc, const void *data, size_t n) noexcept
    uint32_t crc32c_update_sliced(uint32_t crc, const void *data, size_t n) noexcept
    const char *crc32c_kernel_name

crc32c_setup()

KERNEL = crc32c_kernel_name.decode()


cdef uint32_t crc32c(const void *data, size_t n, uint32_t crc) noexcept nogil:
    return crc32c_update(crc, data, n)


cdef uint32_t page_crc(const char *page, size_t bytes) noexcept nogil:
    cdef char head[CRC_END]
    memcpy(head, page, CRC_OFFSET)
    head[4] = head[5] = head[6] = head[7] = 0
    return crc32c_update(crc32c_update(0, head, CRC_END), page + CRC_END, bytes - CRC_END)


def crc32c_of(data, uint32_t value=0, *, bint portable=False):
    """The CRC32C of a contiguous buffer, continuing from `value`; `portable` computes it without the instruction."""
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            if portable:
                crc = crc32c_update_sliced(value, view.buf, view.len)
            else:
                crc = crc32c_update(value, view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


def page_crc_of(page):
    """The CRC32C of a page's slot, a contiguous buffer, with the CRC field (bytes 4 to 8) taken as zero."""
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(page, &view, PyBUF_SIMPLE)
    try:
        if view.len < CRC_END:
            raise ValueError(f"a page has at least {CRC_END} bytes, got {view.len}")
        with nogil:
            crc = page_crc(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


# Python knows both kernels by the names that Cython code cimports; in this file those names are the C functions.
globals().update(crc32c=crc32c_of, page_crc=page_crc_of)
