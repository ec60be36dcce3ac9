"""Copies of pages, taken out of a store and verified, for files that the store doesn't own."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from xtree.persistence.pages.node_id cimport handle_of
from xtree.persistence.pages.page cimport class_bytes
from xtree.persistence.store.store cimport Store, resolve


def copy_pages(Store store not None, const uint64_t[::1] nodes, int size_class, unsigned char[::1] out):
    """Copies pages of one size class, one after the other, to the beginning of `out`; every copy is verified.

    nodes: NodeIDs of pages that are visible at an epoch which the caller has pinned. To be called inside
    `store.call()`. Raises CorruptionError for a page that isn't what was written, OSError.
    """
    cdef Py_ssize_t i, count = nodes.shape[0]
    cdef uint64_t size = class_bytes(size_class)
    cdef char *page
    cdef char *copy
    if <uint64_t>out.shape[0] < count * size:
        raise ValueError(f"{count} pages of {size} bytes don't fit into {out.shape[0]}")
    if count == 0:
        return
    with nogil:
        for i in range(count):
            page = resolve(store, nodes[i])
            copy = <char *>&out[i * size]
            memcpy(copy, page, size)
            store.verify(nodes[i], store.table.row(handle_of(nodes[i])), copy)
