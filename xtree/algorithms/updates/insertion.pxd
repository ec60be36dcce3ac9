"""Insertion into an X-tree: choose-subtree on the way down, splits on the way up.

One Inserter belongs to one transaction, and to one thread at a time. Every page it changes is one that the
transaction made, or a copy it makes on the way down.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.bucket cimport Bucket, Geometry
from xtree.persistence.base.breath cimport Breath
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.store.store cimport Store
from xtree.persistence.store.write_set cimport WriteSet
from xtree.algorithms.updates.split cimport Splitter
from xtree.algorithms.updates.subtree_choice cimport SubtreeChooser
from xtree.algorithms.tree_state cimport MAX_LEVELS, TreeState


@cython.final
cdef class Inserter:
    cdef WriteSet ws
    cdef Store store
    cdef TreeState state
    cdef SubtreeChooser chooser
    cdef Splitter splitter          # None until a page is split
    cdef Breath breath              # taken between two records, by the user of this object
    # The way down, of an insertion or a removal.
    cdef NodeID path[MAX_LEVELS]    # by level, the page
    cdef int chosen[MAX_LEVELS]     # by level, the entry taken there

    # Puts an entry into a page of a level: a record at level 0, a subtree above it. Bounds grow, but the caller counts
    # the records. After an error the state of the tree is undefined, and its transaction must abort.
    cdef int insert(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil
    # Makes `node` the page of the path at a level, in its parent or as the root.
    cdef int repoint(self, int level, NodeID node) except -1 nogil
    # Changes the number of blocks of a supernode of the path, or of a page that becomes one.
    cdef int resize(self, Bucket *b, int blocks) except -1 nogil

    cdef int plant(self, const double *box, uint64_t ref) except -1 nogil
    cdef int descend(self, const double *box, int64_t least_id, int64_t most_id, int level) except -1 nogil
    cdef int place(self, const double *box, uint64_t ref, uint64_t split_history, int level) except -1 nogil
    cdef int split(self, Bucket *b, bint on_axis, double *box, uint64_t *ref, uint64_t *split_history) except -1 nogil
    cdef int raise_root(self, const double *box, NodeID node, const double *other_box, NodeID other,
                        uint64_t split_history) except -1 nogil
    cdef int place_of(self, Bucket *b, const double *box, NodeID child) except -1 nogil
    cdef Bucket *new_page(self, int level, int count) except NULL nogil
    cdef int bound_ids(self, Bucket *b) except -1 nogil


# Returns a page that the transaction may change: the page itself, or a copy, whose NodeID it sets. Raises
# CorruptionError for a page whose level, size or fill does not fit this tree, since splits and growth rely on them.
cdef Bucket *make_writable(WriteSet ws, TreeState state, NodeID *node, int level) except NULL nogil
# The least number of blocks of a directory page for so many entries.
cdef int blocks_for(const Geometry *g, int count) noexcept nogil
# The smallest size class that holds so many blocks.
cdef int class_of_blocks(const Geometry *g, int blocks) noexcept nogil
