"""Bell: ends one thread's sleep. It can't fail, and what is rung before the sleep ends it too."""

cimport cython
from cpython.pythread cimport PyThread_type_lock


@cython.final
cdef class Bell:
    cdef PyThread_type_lock silent      # held by nobody, unless it is silent

    # Rung twice is rung once.
    cdef void ring(self) noexcept
    # Forgets a ring. Neither this nor `ring` gives the GIL away.
    cdef void silence(self) noexcept
