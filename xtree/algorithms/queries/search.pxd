"""Search: window queries, and what they know of a leaf on its way to the results."""

from libc.stdint cimport int64_t

from xtree.algorithms.bucket cimport Bucket
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store
from xtree.algorithms.tree_state cimport TreeState
from xtree.algorithms.queries.walk cimport Predicate


# A leaf that a walk has found, on its way through the pipeline.
cdef struct FoundLeaf:
    NodeID node
    const double *query
    int64_t number                  # of the query in its batch
    bint inside                     # all records qualify
    Bucket *page                    # known, as are the next two, once it has been looked at
    int64_t first                   # records that may qualify
    int64_t end


# Leaves on their way from the walk to the results, across the queries of a batch. Each stage prefetches what the
# next one reads; it has the time of a few other leaves to arrive.
cdef enum:
    PIPELINE = 16                   # places, at least TAKEN
    ASKED = 3                       # leaves found since: its row has arrived, its page is prefetched
    LOOKED = 7                      # its leading axis has arrived, the rest of the entries that pass it is prefetched
    TAKEN = 11                      # its records go to the results


# query_one on a valid box: an array of ids. Raises CorruptionError, MemoryError.
cdef object ids_of_one(Store store, TreeState state, const double *box, Predicate predicate)
# How many records qualify for a valid box. Raises CorruptionError, MemoryError.
cdef int64_t count_of_one(Store store, TreeState state, const double *box, Predicate predicate) except -1
