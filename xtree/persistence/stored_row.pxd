"""A row as a checkpoint stores it: 48 bytes, little-endian.

Handle by handle, shard by shard; the first of a shard belongs to no handle and is all zero. All but the tag is 0 in the
row of a handle that is free, or whose page wasn't visible at the checkpoint's epoch.
"""

from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from xtree.persistence.atomics cimport load_acquire, load_relaxed, store_release
from xtree.persistence.file_places cimport FilePlaces
from xtree.persistence.mmap_windows cimport offset_of, window_of
from xtree.persistence.row cimport STATE_FREE, STATE_LIVE, WORD_TAG, Row, class_of, kind_of, make_word, state_of


cdef struct StoredRow:
    uint8_t state                   # as in Row.word: 0 free, 2 live; never renumber
    uint8_t tag                     # of the handle's last life; 0 when it had none
    uint8_t kind
    uint8_t size_class
    uint32_t file_number
    uint64_t offset
    uint64_t birth
    uint64_t retire                 # 2**64 - 1
    uint32_t crc
    uint32_t reserved_32
    uint64_t reserved_64


cdef inline bint is_blank(const StoredRow *stored) noexcept nogil:
    """Whether a row is free and holds nothing but a tag."""
    return not (stored.state or stored.kind or stored.size_class or stored.file_number or stored.offset
                or stored.birth or stored.retire or stored.crc or stored.reserved_32 or stored.reserved_64)


cdef inline const char *load_row(const StoredRow *stored, FilePlaces places, Row *row) noexcept nogil:
    """Fills a row that is all zero; what is wrong with the stored one, or NULL when nothing is."""
    cdef const char *wrong
    if stored.state == STATE_FREE:
        row.word = stored.tag
        if not is_blank(stored):
            return "free, with content"
        return NULL
    if stored.state != STATE_LIVE:
        return "impossible state"
    if stored.tag == 0 or stored.kind == 0:
        return "impossible tag or kind"
    if stored.birth == UINT64_MAX or stored.retire != UINT64_MAX:
        return "impossible birth or retire epoch"
    if stored.reserved_32 or stored.reserved_64:
        return "reserved fields in use"
    wrong = places.locate(stored.file_number, stored.size_class, stored.offset, &row.address)
    if wrong != NULL:
        return wrong
    row.birth = stored.birth
    row.retire = UINT64_MAX
    row.crc = stored.crc
    store_release(&row.word, make_word(STATE_LIVE, stored.tag, stored.kind, stored.size_class))
    return NULL


cdef inline const char *store_row(const Row *row, uint64_t epoch, const uint32_t *files, uint32_t windows,
                                  StoredRow *out) noexcept nogil:
    """What a checkpoint of an epoch says of a row; `files` has the file number of each window.

    Another thread may reserve the row meanwhile, which sets birth before retire.
    """
    cdef uint64_t word = load_acquire(&row.word), retire, birth
    memset(out, 0, sizeof(StoredRow))
    out.tag = word & WORD_TAG
    retire = load_acquire(&row.retire)
    birth = load_acquire(&row.birth)
    if state_of(word) < STATE_LIVE or not birth <= epoch < retire:
        return NULL
    if window_of(load_relaxed(&row.address)) >= windows:
        return "in a window without a data file"
    out.state = STATE_LIVE
    out.kind = kind_of(word)
    out.size_class = class_of(word)
    out.file_number = files[window_of(load_relaxed(&row.address))]
    out.offset = offset_of(load_relaxed(&row.address))
    out.birth = birth
    out.retire = UINT64_MAX
    out.crc = row.crc
    return NULL
