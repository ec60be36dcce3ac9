"""Right of way: queries give the GIL to a thread that wants it back in the middle of a commit.

A thread that asks for the GIL gets it when the one that has it waits for something, or after the switch interval of
5 ms; then any other may come first. A commit waits for it after each sync. With eight threads of short queries, that
took fifty times as long as the commit. So who comes back from a sync, or is woken because a commit has ended, says so,
and queries give way between two calls, for a millisecond at most.

    field       written by                                                        order
    wanting     any thread that wants the GIL, before it asks and after it got it  atomic
    closed      the same threads                                                   atomic
    gate        held while `closed`; queries wait for it                           the lock

`closed` may be 0 although somebody wants the GIL: then queries give it away and ask again at once. A thread that never
gets it, because the interpreter ends, costs the queries a millisecond each. In a forked child nobody wants it.
"""

from libc.stdint cimport uint64_t

from xtree.persistence.base.atomics cimport load_relaxed

cdef uint64_t wanting               # threads that want the GIL back for a commit

# Called without the GIL, right before it is asked for, and with the GIL right after that.
cdef void want_gil() noexcept nogil
cdef void got_gil() noexcept nogil
cdef void let_them_pass() noexcept


cdef inline void give_way() noexcept:
    """Called by queries with the GIL, while they hold nothing that others wait for."""
    if load_relaxed(&wanting):
        let_them_pass()
