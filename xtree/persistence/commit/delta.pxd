from libc.stdint cimport uint32_t, uint64_t

from xtree.persistence.files.log_frame cimport LogFrame
from xtree.persistence.store.write_set cimport WriteSet


# Adds the deltas of a write set to a frame; returns how many. Pages of more than `largest_payload` bytes have been
# flushed and get no payload. file_numbers: of each window.
cdef Py_ssize_t add_deltas(LogFrame frame, WriteSet ws, uint64_t epoch, uint64_t largest_payload,
                           list file_numbers) except -1
# Adds the payloads of these `count` deltas of the frame, and completes the deltas. A page that replaces one which the
# same log holds is logged as the words that differ, if they are few. The caller is in flight.
cdef int add_payloads(LogFrame frame, WriteSet ws, size_t deltas_at, Py_ssize_t count,
                      uint32_t log_number) except -1 nogil
