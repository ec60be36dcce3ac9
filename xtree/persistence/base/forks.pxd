"""Forks: how a process distinguishes what it has inherited from what it has made itself.

    field    written by                          read by       order
    forks    the at-fork handler, in the child,  any thread    plain: there is one thread then
             before any other
"""


# How many forks lie between this process and the one that imported the library.
cdef int forks_seen() noexcept nogil
