"""Forks: how often the process was forked since the library was imported. docs: forks.pxd."""

import os

cdef int forks = 0


cdef int forks_seen() noexcept nogil:
    return forks


def fork_count():
    """How many forks lie between this process and the one that imported the library."""
    return forks


def _forked():
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
