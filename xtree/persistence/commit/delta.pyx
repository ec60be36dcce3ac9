"""Deltas: what the write-ahead log records of a write set, 64 bytes for each page made or removed, and the pages."""

from cpython.buffer cimport PyBUF_READ
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from xtree.persistence.base.atomics cimport load_relaxed
from xtree.persistence.files.frame_layout cimport (
    FIRST_WORD, OP_BIRTH, OP_RETIRE, PAYLOAD_RANGES, PAYLOAD_WHOLE, Delta, Range,
)
from xtree.persistence.pages.mmap_windows cimport offset_of, window_of
from xtree.persistence.pages.node_id cimport handle_of
from xtree.persistence.pages.object_table cimport Row, class_of, kind_of
from xtree.persistence.pages.page cimport class_bytes
from xtree.persistence.store.store cimport resolve
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


def deltas_of(WriteSet ws, uint64_t epoch, uint64_t largest_payload, uint64_t payload_base, list file_numbers,
              uint32_t log_number):
    """What log `log_number` records of this write set: (deltas as bytes, their number, payloads, payload bytes).

    Payloads are buffers that follow one another. Pages of more than `largest_payload` bytes have none: they have been
    flushed. A page that replaces one which this log holds is logged as the words that differ, if they are few.
    Payload offsets count from the start of the frame's payload section, where `payload_base` bytes are taken already.
    The views are valid as long as the caller is in flight.
    """
    cdef Py_ssize_t i, count = 0, found
    cdef uint64_t size, start = payload_base
    cdef Row *row
    cdef uint64_t word
    cdef Row *base
    cdef Delta *delta
    cdef const char *page
    cdef const char *before
    deltas = bytearray((ws.made_count + ws.retired_count) * sizeof(Delta))
    cdef char *out = deltas
    cdef bytearray ranges = bytearray()
    cdef Py_ssize_t ranges_used = 0
    whole = []
    for i in range(ws.made_count):
        if ws.made[i].node == 0:
            continue
        row = ws.store.table.row(handle_of(ws.made[i].node))
        size = class_bytes(class_of(row.word))
        delta = <Delta *>out + count
        count += 1
        delta.node_id = ws.made[i].node
        delta.epoch = epoch
        delta.op = OP_BIRTH
        delta.kind = kind_of(row.word)
        delta.size_class = class_of(row.word)
        delta.file_number = file_numbers[window_of(row.address)]
        delta.offset = offset_of(row.address)
        delta.page_crc = row.crc
        delta.page_bytes = size
        delta.replaces = ws.made[i].replaces
        row.log_number = 0
        if size > largest_payload:
            continue
        row.log_number = log_number
        page = resolve(ws.store, ws.made[i].node)
        if delta.replaces:
            base = ws.store.table.row(handle_of(delta.replaces))
            if base.log_number == log_number and class_of(load_relaxed(&base.word)) == delta.size_class:
                before = resolve(ws.store, delta.replaces)
                if len(ranges) < ranges_used + <Py_ssize_t>size:
                    PyByteArray_Resize(ranges, 2 * len(ranges) + size)
                found = changed_ranges(before, page, size, PyByteArray_AS_STRING(ranges) + ranges_used, size // 2)
                if found >= 0:
                    delta.payload_form = PAYLOAD_RANGES
                    delta.payload_offset = ranges_used
                    delta.payload_bytes = found
                    delta.base_crc = base.crc
                    ranges_used += found
                    continue
        delta.payload_form = PAYLOAD_WHOLE
        delta.payload_offset = payload_base
        delta.payload_bytes = size
        payload_base += size
        whole.append(PyMemoryView_FromMemory(<char *>page, size, PyBUF_READ))
    if ranges_used:
        for i in range(count):
            if (<Delta *>out + i).payload_form == PAYLOAD_RANGES:
                (<Delta *>out + i).payload_offset += payload_base
        del ranges[ranges_used:]
        payload_base += ranges_used
        whole.append(ranges)
    for i in range(ws.retired_count):
        word = load_relaxed(&ws.store.table.row(handle_of(ws.retired[i])).word)
        delta = <Delta *>out + count
        count += 1
        delta.node_id = ws.retired[i]
        delta.epoch = epoch
        delta.op = OP_RETIRE
        delta.kind = kind_of(word)
        delta.size_class = class_of(word)
    if <Py_ssize_t>(count * sizeof(Delta)) < len(deltas):
        del deltas[count * sizeof(Delta):]
    return deltas, count, whole, payload_base - start


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
