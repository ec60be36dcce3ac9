"""Writer locks: one writer at a time changes a tree.

    field                                   written by                         read by       order
    Tip                                     the scope that has queued it       the next      the GIL
                                                                               writer
    WriterLock.holder, tip, dropped         the holder                         any thread    the GIL
    WriterLocks.holding                     each thread, its own entry         any thread    the GIL
"""

cimport cython


cdef class Handle:
    """A handle of a tree; what is begun with it may not go on once it is closed."""

    cdef readonly int dims
    cdef bint closed

    # Raises ClosedError when it was closed, or its tree dropped.
    cdef int need_open(self) except -1
    # Whether its close() or that of its session was called.
    cdef bint was_closed(self) noexcept


@cython.final
@cython.no_gc
cdef class Tip:
    # Set by the scope before it gives its locks back, emptied at its end. The next holder of one of those locks takes
    # the write set first and looks at its status. When there is none, it takes the published catalog, which holds all
    # the changes or none.
    cdef object write_set
    cdef dict changes               # name -> entry


@cython.final
cdef class WriterLock:
    cdef readonly str name
    # Set by the holder before it gives the lock back; read with the GIL, after `published`. A new tree of the same name
    # is made under another lock, and so after this is set: no handle ever sees a tree that is not its own.
    cdef readonly bint dropped      # the tree is gone for good, or was never made: another lock has the name
    cdef Tip tip                    # of the scope that had it last; None or empty: ask the catalog
    cdef object table               # a weak reference to the WriterLocks
    cdef dict holding               # that of the table
    cdef object lock
    cdef object holder              # the thread that took it
    cdef int forks                  # forks_seen() at that time; in a process forked later there is no holder
    cdef object handles             # a weak reference to the tree's handle; a tuple of several sessions' ones

    cdef tuple references(self)
    # Frees the lock at its first use in a forked child, where nobody holds it.
    cdef int refresh(self) except -1
    # Whether the calling thread holds a lock of the same table.
    cdef bint holds_another(self) except -1
    # Takes the lock. queueing: whether a thread that waits does so in the lock from the start. Raises TransactionError
    # where it could wait for ever, TimeoutError, ClosedError.
    cdef int take(self, object deadline, bint wait, bint queueing) except -1
    # Tries to take the lock with the GIL, some times, which lasts milliseconds. Who waits in the lock itself gets it
    # without the GIL, and holds it until that comes too. Where no commit waits for a disk, nobody needs the GIL less
    # than the others meanwhile, and then each commit waits for the next thread.
    cdef bint try_again(self, object deadline) except -1
    cdef int give_back(self) except -1
    # Notes that its tree is gone for good; the holder calls this before it gives the lock back.
    cdef int retire(self) except -1


@cython.final
cdef class WriterLocks:
    cdef dict by_name
    cdef dict holding
    cdef int forks                  # forks_seen() when `holding` was filled
    cdef object __weakref__
