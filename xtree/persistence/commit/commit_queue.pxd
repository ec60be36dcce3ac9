from xtree.persistence.base.outcome cimport Outcome
from xtree.persistence.store.write_set cimport WriteSet


cdef class Request(Outcome):
    cdef readonly str what
    cdef readonly WriteSet write_set
    cdef readonly object changes
    cdef readonly Py_ssize_t largest_payload    # of a commit: larger pages have been flushed
    cdef readonly object on_queued
    cdef Py_ssize_t delta_count                 # for the group that it is in
    cdef Request following                      # in the queue
