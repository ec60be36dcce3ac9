from libc.stdint cimport uint64_t

from xtree.persistence.files.log_frame cimport LogFrame


cdef class Group:
    cdef readonly list requests
    cdef readonly list write_sets
    cdef readonly LogFrame frame
    cdef readonly object catalog    # of the last epoch
    cdef readonly uint64_t first_epoch, last_epoch
    cdef readonly Py_ssize_t pages  # made or retired
    cdef readonly double started
