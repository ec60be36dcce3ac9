"""Group: commits that share one frame, one append and one sync; planning it changes nothing."""

cimport cython
from libc.stdint cimport uint64_t

from xtree.persistence.base.right_of_way cimport got_gil, want_gil
from xtree.persistence.commit.commit_queue cimport Request
from xtree.persistence.commit.delta cimport add_deltas, add_payloads
from xtree.persistence.files.log_frame cimport LogFrame, LogTail
from xtree.persistence.store.catalog cimport Catalog, encoded
from xtree.persistence.store.store cimport Store
from xtree.persistence.store.write_set cimport WriteSet

from time import perf_counter

from xtree.persistence.files.frame import FRAME_GROUP as _FRAME_GROUP

cdef enum:
    COPIED_WITH_GIL = 1 << 17       # bytes of pages: giving the GIL away for fewer costs more than it gives others
    DELTA_BYTES = 64

cdef int FRAME_GROUP = _FRAME_GROUP


@cython.final
cdef class Group:
    """Commits in the order of their epochs, with the frame that holds them all."""


def plan_group(Store store not None, list requests not None, LogTail tail not None, uint64_t first_epoch,
               uint64_t durable_through, list file_numbers not None):
    """The group of these requests, with its frame for the place after the tail. The caller is in flight.

    Their epochs follow one another from first_epoch on. durable_through: the last epoch that is known to be on the
    disk. file_numbers: of each window. Raises MemoryError, CorruptionError, ValueError.
    """
    cdef Group group = Group.__new__(Group)
    cdef LogFrame frame = LogFrame()
    cdef Request request
    cdef WriteSet ws
    cdef dict changes
    cdef uint64_t epoch = first_epoch
    cdef size_t deltas_at = frame.used
    group.started = perf_counter()
    group.requests = requests
    group.write_sets = []
    group.frame = frame
    if len(requests) == 1:
        changes = (<Request>requests[0]).changes
    else:
        changes = {}
        for request in requests:
            changes.update(request.changes)
    for request in requests:
        ws = request.write_set
        group.write_sets.append(ws)
        request.delta_count = add_deltas(frame, ws, epoch, request.largest_payload, file_numbers)
        group.pages += request.delta_count
        epoch += 1
    group.catalog = (<Catalog>store.published.catalog).with_changes(changes)
    frame.add_catalog(encoded(changes), len(changes))
    for request in requests:
        ws = request.write_set
        if ws.bytes_made <= COPIED_WITH_GIL:
            add_payloads(frame, ws, deltas_at, request.delta_count, tail.number)
        else:
            with nogil:
                add_payloads(frame, ws, deltas_at, request.delta_count, tail.number)
                want_gil()
            got_gil()
        deltas_at += request.delta_count * DELTA_BYTES
    group.first_epoch, group.last_epoch = first_epoch, epoch - 1
    frame.finish(tail, FRAME_GROUP, first_epoch, epoch - 1, durable_through)
    return group
