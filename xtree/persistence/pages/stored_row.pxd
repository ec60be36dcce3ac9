"""The row of a live page as a checkpoint stores it: 32 bytes, little-endian.

The rows are stored by rising handle. Of all other handles a checkpoint holds only the tags.
"""

from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t

from xtree.persistence.base.atomics cimport load_acquire, load_relaxed, store_release
from xtree.persistence.pages.file_places cimport FilePlaces
from xtree.persistence.pages.mmap_windows cimport offset_of, window_of
from xtree.persistence.pages.node_id cimport NodeID, tag_of
from xtree.persistence.pages.row cimport STATE_LIVE, Row, class_of, kind_of, make_word, state_of

cdef enum:
    OFFSET_SHIFT = 12               # slots begin at multiples of 4096


cdef struct StoredRow:
    NodeID node_id
    uint64_t birth
    uint32_t file_number
    uint32_t offset_4k              # of the slot, in units of 4096 bytes
    uint32_t crc
    uint8_t kind
    uint8_t size_class
    uint16_t reserved


cdef inline const char *load_row(const StoredRow *stored, uint8_t tag, uint64_t epoch, FilePlaces places,
                                 Row *row) noexcept nogil:
    """Fills the row of a handle with this tag, which is all zero, from a checkpoint of an epoch.

    Returns what is wrong with the stored row, or NULL when nothing is.
    """
    cdef const char *wrong
    if tag == 0 or tag_of(stored.node_id) != tag or stored.kind == 0:
        return "impossible tag or kind"
    if stored.birth > epoch or stored.birth == UINT64_MAX:
        return "impossible birth epoch"
    if stored.reserved:
        return "reserved field in use"
    wrong = places.locate(stored.file_number, stored.size_class, <uint64_t>stored.offset_4k << OFFSET_SHIFT,
                          &row.address)
    if wrong != NULL:
        return wrong
    row.birth = stored.birth
    row.retire = UINT64_MAX
    row.crc = stored.crc
    store_release(&row.word, make_word(STATE_LIVE, tag, stored.kind, stored.size_class))
    return NULL


cdef inline bint is_visible(const Row *row, uint64_t word, uint64_t epoch) noexcept nogil:
    """Whether the page of a row, whose word has been read, is visible at an epoch.

    Another thread may reserve the row meanwhile, which sets birth before retire; so retire is read first.
    """
    cdef uint64_t retire = load_acquire(&row.retire), birth = load_acquire(&row.birth)
    return state_of(word) >= STATE_LIVE and birth <= epoch < retire


cdef inline const char *store_row(const Row *row, uint64_t word, NodeID node, const uint32_t *files, uint32_t windows,
                                  StoredRow *out) noexcept nogil:
    """Stores the row of a visible page; `files` has the file number of each window.

    Returns what is wrong with it, or NULL when nothing is.
    """
    cdef uint64_t address = load_relaxed(&row.address)
    if window_of(address) >= windows:
        return "in a window without a data file"
    out.node_id = node
    out.birth = load_acquire(&row.birth)
    out.file_number = files[window_of(address)]
    out.offset_4k = <uint32_t>(offset_of(address) >> OFFSET_SHIFT)
    out.crc = row.crc
    out.kind = kind_of(word)
    out.size_class = class_of(word)
    out.reserved = 0
    return NULL
