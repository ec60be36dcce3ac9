"""The first 24 bytes of every page: what the substrate knows about it. The structure owns what follows.

The CRC covers the whole slot with the CRC field as zero. docs/format.md has the table.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from xtree.persistence.pages.node_id cimport NodeID

cdef enum:
    PAGE_MAGIC = 0x47505458     # "XTPG" as little-endian bytes
    PAGE_FORMAT = 1
    SIZE_CLASSES = 7
    SMALLEST_PAGE = 4096


cdef struct PagePrefix:
    uint32_t magic
    uint32_t crc                # CRC32C of the slot with this field zero; equal to the row's
    NodeID node_id              # its own
    uint8_t kind                # which structure wrote it: 1 X-tree leaf, 2 X-tree directory; never renumber
    uint8_t size_class          # 0: 4 KiB ... 6: 256 KiB
    uint16_t format
    uint32_t flags              # belongs to the structure


cdef inline uint64_t class_bytes(int size_class) noexcept nogil:
    return <uint64_t>SMALLEST_PAGE << size_class


# Fills a page with zeros, except for its prefix.
cdef inline void clear_page(char *page, int kind, int size_class, NodeID node) noexcept nogil:
    cdef PagePrefix *prefix = <PagePrefix *>page
    memset(page, 0, class_bytes(size_class))
    prefix.magic = PAGE_MAGIC
    prefix.node_id = node
    prefix.kind = kind
    prefix.size_class = size_class
    prefix.format = PAGE_FORMAT


# Says what is wrong with a page whose prefix and CRC are right, NULL when nothing is. A structure registers one
# for each kind of page it writes; it must cope with any bytes, since a forged page has a right CRC too.
ctypedef const char *(*PageVerifier)(const char *page, int size_class) noexcept nogil
