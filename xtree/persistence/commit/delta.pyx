"""Deltas: what the write-ahead log records of a write set, 64 bytes for each page made or removed, and the pages."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from xtree.persistence.base.atomics cimport load_relaxed
from xtree.persistence.files.frame_layout cimport (
    FIRST_WORD, OP_BIRTH, OP_RETIRE, PAYLOAD_NONE, PAYLOAD_RANGES, PAYLOAD_WHOLE, Delta, Range,
)
from xtree.persistence.files.log_frame cimport LogFrame
from xtree.persistence.pages.mmap_windows cimport offset_of, window_of
from xtree.persistence.pages.node_id cimport handle_of
from xtree.persistence.pages.object_table cimport Row, class_of, kind_of
from xtree.persistence.pages.page cimport class_bytes
from xtree.persistence.store.store cimport Store, resolve
from xtree.persistence.store.write_set cimport WriteSet


cdef enum:
    STRIDE = 16                     # words that are compared at once


def touched_windows(WriteSet ws, uint64_t largest_payload):
    """(windows that hold pages the write set made, those of them with pages of more than `largest_payload` bytes)."""
    cdef Py_ssize_t i
    cdef Row *row
    cdef int64_t last = -1
    cdef bint last_large = False, large
    touched, to_flush = set(), set()
    for i in range(ws.made_count):
        if ws.made[i].node:
            row = ws.store.table.row(handle_of(ws.made[i].node))
            large = class_bytes(class_of(row.word)) > largest_payload
            if window_of(row.address) != last or (large and not last_large):
                last = window_of(row.address)
                last_large = large
                touched.add(last)
                if large:
                    to_flush.add(last)
    return touched, to_flush


cdef Py_ssize_t add_deltas(LogFrame frame, WriteSet ws, uint64_t epoch, uint64_t largest_payload,
                           list file_numbers) except -1:
    cdef Py_ssize_t i, count = ws.retired_count
    cdef Row *row
    cdef uint64_t word
    cdef Delta *delta
    for i in range(ws.made_count):
        count += ws.made[i].node != 0
    delta = <Delta *>frame.more(count * sizeof(Delta))
    memset(delta, 0, count * sizeof(Delta))
    for i in range(ws.made_count):
        if ws.made[i].node == 0:
            continue
        row = ws.store.table.row(handle_of(ws.made[i].node))
        delta.node_id = ws.made[i].node
        delta.epoch = epoch
        delta.op = OP_BIRTH
        delta.kind = kind_of(row.word)
        delta.size_class = class_of(row.word)
        delta.payload_form = PAYLOAD_NONE if class_bytes(class_of(row.word)) > largest_payload else PAYLOAD_WHOLE
        delta.file_number = file_numbers[window_of(row.address)]
        delta.offset = offset_of(row.address)
        delta.page_crc = row.crc
        delta.page_bytes = class_bytes(class_of(row.word))
        delta.replaces = ws.made[i].replaces
        delta += 1
    for i in range(ws.retired_count):
        word = load_relaxed(&ws.store.table.row(handle_of(ws.retired[i])).word)
        delta.node_id = ws.retired[i]
        delta.epoch = epoch
        delta.op = OP_RETIRE
        delta.kind = kind_of(word)
        delta.size_class = class_of(word)
        delta += 1
    return count


cdef int add_payloads(LogFrame frame, WriteSet ws, size_t deltas_at, Py_ssize_t count,
                      uint32_t log_number) except -1 nogil:
    cdef Py_ssize_t i, found
    cdef uint64_t size
    cdef Delta *delta
    cdef Row *row
    cdef const char *page
    cdef const char *base
    cdef char *out
    for i in range(count):
        delta = <Delta *>(frame.data + deltas_at) + i
        if delta.op != OP_BIRTH:
            break
        row = ws.store.table.row(handle_of(delta.node_id))
        row.log_number = log_number if delta.payload_form else 0
        if not delta.payload_form:
            continue
        size = delta.page_bytes
        page = resolve(ws.store, delta.node_id)
        base = base_at_hand(ws.store, delta, log_number)
        out = frame.more(size)
        delta = <Delta *>(frame.data + deltas_at) + i       # it may have moved
        found = changed_ranges(base, page, size, out, size // 2) if base != NULL else -1
        if found >= 0:
            delta.payload_form = PAYLOAD_RANGES
            delta.base_crc = ws.store.table.row(handle_of(delta.replaces)).crc
        else:
            memcpy(out, page, size)
            found = size
        delta.payload_offset = out - frame.data - frame.payload_at
        delta.payload_bytes = found
        frame.used -= size - found
    return 0


cdef const char *base_at_hand(Store store, const Delta *delta, uint32_t log_number) except? NULL nogil:
    """The page that a new one replaces, if the log holds it and recovery can build on it; else NULL."""
    cdef Row *row
    if delta.replaces == 0:
        return NULL
    row = store.table.row(handle_of(delta.replaces))
    if row.log_number != log_number or class_of(load_relaxed(&row.word)) != delta.size_class:
        return NULL
    return resolve(store, delta.replaces)


cdef Py_ssize_t changed_ranges(const char *before, const char *after, uint64_t size, char *out,
                               Py_ssize_t room) noexcept nogil:
    """Writes the words in which two pages differ, except those of their identity, to `out`; returns how many bytes, or
    -1 when they need more than `room`."""
    cdef const uint64_t *a = <const uint64_t *>before
    cdef const uint64_t *b = <const uint64_t *>after
    cdef uint64_t words = size // sizeof(uint64_t), i = FIRST_WORD, first
    cdef Py_ssize_t used = 0, length
    while i < words:
        if a[i] == b[i]:
            i += 1
            while i % STRIDE == 0 and i + STRIDE <= words and memcmp(a + i, b + i, STRIDE * sizeof(uint64_t)) == 0:
                i += STRIDE
            continue
        first = i
        while i < words and a[i] != b[i]:
            i += 1
        length = (i - first) * sizeof(uint64_t)
        if used + <Py_ssize_t>sizeof(Range) + length > room:
            return -1
        (<Range *>(out + used)).first_word = <uint16_t>first
        (<Range *>(out + used)).word_count = <uint16_t>(i - first)
        memcpy(out + used + sizeof(Range), b + first, length)
        used += sizeof(Range) + length
    return used
