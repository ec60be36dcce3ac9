"""Right of way: commits and queries give each other the GIL sooner than the interpreter would.

A thread that asks for the GIL gets it when the one that has it waits for something, or after the switch interval of
5 ms; then any other may come first. A commit wants it back after each sync, a query after each search, and both take
microseconds.

So who comes back from a sync, or is woken because a commit has ended, says so, and queries give way between two calls:
beside eight threads of them a writer makes ten times as many commits. And a writer that waits for no disk, and would
keep the GIL for 5 ms for each short query beside it, stops for a fifth of a millisecond after half of one, when queries
want it.

    field         written by                                                          order
    wanting       threads that want the GIL for a commit, before and after they wait  atomic
    closed        the same threads; queries that have the gate, with the GIL          atomic
    gate          held while `closed`; queries wait for it                            the lock
    returning     queries, before and after they wait for the GIL                     atomic
    syncing       threads that carry commits, before and after a sync                 atomic
    slice_began   writers                                                             the GIL

A query that comes from the gate holds it until it has the GIL, so that one at a time asks for that. A thread that wants
the GIL meanwhile finds the gate taken: then the query leaves it closed. A thread that never gets the GIL, because the
interpreter ends, costs the others a moment each time. In a forked child nobody wants it.
"""

from libc.stdint cimport uint64_t

from xtree.persistence.base.atomics cimport load_relaxed

cdef uint64_t wanting
cdef uint64_t returning
cdef uint64_t syncing               # meanwhile queries give the GIL away, as the thread that comes back will want it

# For a commit: called without the GIL, right before it is asked for, and with the GIL right after that.
cdef void want_gil() noexcept nogil
cdef void got_gil() noexcept nogil
# The same for a query.
cdef void want_gil_for_query() noexcept nogil
cdef void got_gil_for_query() noexcept nogil
# Around the sync of a commit.
cdef void begin_sync() noexcept nogil
cdef void end_sync() noexcept nogil

cdef void wait_at_gate() noexcept
cdef void wait_for_slice() noexcept


cdef inline void let_commits_pass() noexcept:
    """Called by queries with the GIL, while they hold nothing that others wait for."""
    if load_relaxed(&wanting):
        wait_at_gate()


cdef inline void let_queries_pass() noexcept:
    """Called by writers with the GIL, after a change or commit of microseconds, while they hold no lock."""
    if load_relaxed(&returning):
        wait_for_slice()
