"""Deltas: what the write-ahead log records of a write set, 64 bytes a page made or retired."""

from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint64_t

from xtree.persistence.frame_layout cimport OP_BIRTH, OP_RETIRE, PAYLOAD_WHOLE, Delta
from xtree.persistence.mmap_windows cimport offset_of, window_of
from xtree.persistence.node_id cimport NodeID, handle_of
from xtree.persistence.object_table cimport Row, class_of, kind_of
from xtree.persistence.page cimport class_bytes
from xtree.persistence.write_set cimport WriteSet


def touched_windows(WriteSet ws, uint64_t smallest_page=0):
    """The windows that hold pages of at least so many bytes."""
    cdef Py_ssize_t i
    cdef Row *row
    found = set()
    for i in range(ws.made_count):
        if ws.made_here(ws.made[i]):
            row = ws.store.table.row(handle_of(ws.made[i]))
            if class_bytes(class_of(row.word)) >= smallest_page:
                found.add(window_of(row.address))
    return found


def deltas_of(WriteSet ws, uint64_t epoch, uint64_t largest_payload, uint64_t payload_base, list file_numbers):
    """What the log records of this write set: (deltas as bytes, their number, payload views, payload bytes).

    Pages of more than `largest_payload` bytes carry no payload: they have been flushed. Payload offsets count
    from the start of the frame's payload section, where `payload_base` bytes are taken already.
    """
    cdef Py_ssize_t i, count = 0
    cdef uint64_t size, start = payload_base
    cdef Row *row
    cdef Delta *delta
    cdef NodeID node
    deltas = bytearray((ws.made_count + ws.retired_count) * sizeof(Delta))
    cdef char *out = deltas
    payloads = []
    for i in range(ws.made_count):
        node = ws.made[i]
        if not ws.made_here(node):
            continue
        row = ws.store.table.row(handle_of(node))
        size = class_bytes(class_of(row.word))
        delta = <Delta *>out + count
        count += 1
        delta.node_id = node
        delta.epoch = epoch
        delta.op = OP_BIRTH
        delta.kind = kind_of(row.word)
        delta.size_class = class_of(row.word)
        delta.file_number = file_numbers[window_of(row.address)]
        delta.offset = offset_of(row.address)
        delta.page_crc = row.crc
        delta.page_bytes = size
        if size <= largest_payload:
            delta.payload_form = PAYLOAD_WHOLE
            delta.payload_offset = payload_base
            delta.payload_bytes = size
            payload_base += size
            payloads.append(PyMemoryView_FromMemory(ws.store.windows.pointer(row.address), size, PyBUF_READ))
    for i in range(ws.retired_count):
        row = ws.store.table.row(handle_of(ws.retired[i]))
        delta = <Delta *>out + count
        count += 1
        delta.node_id = ws.retired[i]
        delta.epoch = epoch
        delta.op = OP_RETIRE
        delta.kind = kind_of(row.word)
        delta.size_class = class_of(row.word)
    del deltas[count * sizeof(Delta):]
    return deltas, count, payloads, payload_base - start
