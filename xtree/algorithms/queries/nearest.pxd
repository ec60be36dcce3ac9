"""Nearest neighbours: the k records of least (distance, id) from a point, exactly."""

from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.queries.explain cimport LevelAccesses
from xtree.algorithms.kernels.arrays cimport Arena
from xtree.algorithms.kernels.box cimport MAX_DIMS
from xtree.persistence.base.breath cimport Breath
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState


cdef struct Page:                   # still to be read
    double distance                 # of its box: no record below is nearer
    NodeID node
    int level


cdef struct Neighbour:
    double distance
    int64_t id


# One search after the other, in the same memory. `pages` is a heap with the nearest page on top, `best` one with the
# farthest neighbour on top.
cdef struct Search:
    int dims
    int levels
    double point[MAX_DIMS]
    double max_distance
    double limit                    # a record farther than this is no result
    int64_t k
    Neighbour *best
    int64_t best_count
    Page *pages
    int64_t page_count, page_room
    double *distances               # of the entries of the page being read
    int64_t distance_room
    int64_t entry_work              # what one entry of a page counts for in a breath
    Breath *breath                  # borrowed
    uint64_t visits
    uint64_t most_visits
    LevelAccesses *accesses         # borrowed; NULL: nobody counts
    NodeID path[MAX_LEVELS]         # of the first descent: the page read on each level
    int64_t taken[MAX_LEVELS]       # and which of its entries was followed


# Returns (ids, distances) for a finite point, as `nearest` does for each of many. Raises CorruptionError, MemoryError.
cdef tuple nearest_of_one(Store store, TreeState state, const double *point, int64_t k, double max_distance)
# Answers points, float64 (m, dims), in an order (NULL: as they stand): appends ids and distances to the arenas;
# starts[i] is where the results of the i-th one answered start, starts[m] where all end. Adds the pages read to
# `accesses`, one for each level, unless it is NULL. Raises CorruptionError, MemoryError, and what a breath does.
cdef int search_points(Store store, TreeState state, const double *points, int64_t m, int64_t k, double max_distance,
                       const uint64_t *order, Arena ids, Arena found, int64_t *starts,
                       LevelAccesses *accesses, Breath *breath) except -1 nogil
