"""Sessions: the handles of one process on one store.

A handle has a session, which says what it may do and which store it uses. Several sessions share the store of a
directory; the last one to end closes it. The module is compiled, so that joining, leaving and moving are one step each.

    field                    written by                                     read by       order
    Session.store            join, make_writable, close                     any thread    the GIL: once a call, which
                                                                                          stays with that store
    Session.closed, refusal  close, an interrupted close; start_in_child    any thread    the GIL
    Session.users            note, forget                                   close         the GIL
    SharedStore, all of it   open, join, make_writable, leave               any thread    the GIL

A session of a store in memory has no SharedStore.
"""

cimport cython

from xtree.persistence.store.store cimport Store


@cython.final
cdef class SharedStore:
    cdef readonly Store store       # that writes, if any handle may
    cdef readonly bint ended        # nobody joins any more: it is being closed, or is closed
    cdef readonly Py_ssize_t joined     # how many sessions there ever were
    cdef bint moving                # a store that writes is about to take its place
    cdef set sessions
    cdef list former                # weak references to the stores, for reading only, whose place `store` has taken
    cdef object identity            # of the lock file; None when there is none
    cdef object locks               # what writers take turns with


@cython.final
cdef class Session:
    cdef readonly Store store       # NO_STORE once it is closed
    cdef readonly SharedStore share
    cdef readonly bint closed
    cdef readonly object path       # None in memory
    cdef object refusal             # what a write is told; None when it may
    cdef object on_error
    cdef object reopen              # called with the session, in a forked child, when it is used there
    cdef dict users                 # weak references to what ends with it, by their ids

    # The store to be used now. Raises ClosedError.
    cdef Store use(self)
    cdef Store look_again(self)
    # Raises ClosedError, ReadOnlyError or StoreFailedError unless it may write.
    cdef int need_writable(self) except -1
    # Notes a user, which close() ends by its method `_cut_off`, until it is forgotten.
    cdef int note(self, user) except -1
    cdef void forget(self, user) noexcept
