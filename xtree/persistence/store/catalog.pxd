from libc.stdint cimport uint64_t


cdef class CatalogEntry:
    cdef readonly str name
    cdef readonly str kind
    cdef readonly uint64_t root
    cdef readonly bytes state
    cdef public object decoded
    cdef bytes encoded_name, encoded_kind

    cpdef CatalogEntry followed_by(self, root, bytes state, decoded=*)
    cdef int become(self, root, bytes state, decoded) except -1


cdef class Catalog:
    cdef readonly tuple blocks
    cdef Py_ssize_t count

    cpdef CatalogEntry get(self, str name)
    cpdef Catalog with_changes(self, dict changes)
    cdef int build(self, entries) except -1


# Changed entries as records, for a log frame.
cdef bytes encoded(dict changes)
