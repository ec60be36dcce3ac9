"""Breaths: the moments at which a long call without the GIL sees whether it is still wanted.

A call counts its work, and takes a breath after about a tenth of a millisecond of it, or after a hundred times as long
where each page comes from the disk. At a breath, a thread of a team checks whether the team has been stopped. The main
thread, when more than LOOK_EVERY_NS have passed, takes the GIL and lets Python handle signals; while another thread
runs Python code, it may wait for the GIL as long as the interpreter lets a thread run. What a handler raises ends the
call, as an error of the call's own would; when the handler returns, the call goes on.

A handler runs Python code, which may call anything, in the middle of whatever takes a breath. So nobody takes one while
a page is half changed, or while holding a lock that others wait for. Pointers stay good: the flight of the call
protects them.

A query of one box or point may take a microsecond, as long as it takes to give the GIL away and get it back. So one
that is likely to be short keeps it, and gives it away where a breath would be due after three microseconds of work.
Where pages have to come from the disk, that would keep other threads waiting: after a query that took long with the
GIL, the next ones give it away at once.

    field                         written by               read by             order
    Team.stopped                  any thread of the team   all threads of it   relaxed: no matter when it is seen
    main_thread                   import, fork             any thread          relaxed
    slow_calls                    queries                  queries             the GIL
    watched, countdown, breaths   a test                   any thread          atomic
"""

from libc.stdint cimport int64_t, uint64_t

from xtree.persistence.base.pythread cimport HeldGil


cdef class Team:
    """The threads that work on one call. When one is interrupted, or fails, the others stop at their next breath."""

    cdef uint64_t stopped


cdef struct Breath:                 # of one call, or of one thread of it
    int64_t left                    # work until the next one
    uint64_t looked_at_ns           # when it last looked for signals; 0 before the first breath
    uint64_t *stopped               # of the team, which the caller keeps alive; NULL: there is none
    bint is_main                    # it is of the thread that handles signals
    HeldGil gil                     # between begin_with_gil and end_with_gil
    uint64_t began_ns               # with the GIL


# Whether this is the thread that handles signals.
cdef bint in_main_thread() noexcept nogil
# Prepares the breaths of a call in this thread. `team` may be None.
cdef void first_breath(Breath *breath, Team team) noexcept nogil
# Between these two, called with the GIL after first_breath, the call has it or not; at the end it has it again.
# `short`: it is likely to take no longer than giving the GIL away.
cdef void begin_with_gil(Breath *breath, bint short) noexcept nogil
cdef void end_with_gil(Breath *breath) noexcept nogil
cdef void give_gil_away(Breath *breath) noexcept nogil
# Takes a breath. Raises Stopped, and whatever a signal handler raises.
cdef int look_up(Breath *breath) except -1 nogil


# memcpy of any size, with breaths in between. Raises what a breath raises.
cdef int copy_block(char *target, const char *source, size_t n, Breath *breath) except -1 nogil


cdef inline int spend(Breath *breath, int64_t work) except -1 nogil:
    """Counts work, above 0, in comparisons of one number or in nanoseconds. Takes a breath when one is due."""
    breath.left -= work
    return look_up(breath) if breath.left < 0 else 0
