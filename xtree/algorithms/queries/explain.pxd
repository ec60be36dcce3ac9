"""Accesses: how many pages of each level a query reads, and how many of their entries it tests."""

from libc.stdint cimport uint64_t

from xtree.algorithms.bucket cimport Bucket


cdef struct LevelAccesses:
    uint64_t pages
    uint64_t blocks                 # of the tree's page size: a supernode of s blocks counts as s
    uint64_t entries                # tested; none where the whole page lies inside the window


cdef inline void count_page(LevelAccesses *levels, const Bucket *b, bint tested) noexcept nogil:
    levels[b.level].pages += 1
    levels[b.level].blocks += b.blocks
    levels[b.level].entries += b.count if tested else 0
