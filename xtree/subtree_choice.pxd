"""The choice of the subtree that a new box belongs under, as in the R*-tree. One thread at a time."""

cimport cython
from libc.stdint cimport uint64_t

from xtree.box cimport Frame
from xtree.bucket cimport Bucket
from xtree.persistence.store cimport Store
from xtree.tree_state cimport TreeState


@cython.final
cdef class SubtreeChooser:
    cdef Store store
    cdef TreeState state
    cdef Frame frame                # of the page whose entries are being compared
    cdef int room                   # entries there is space for
    cdef void *block                # one allocation for all that follows
    cdef double *measures           # MEASURES arrays of `room`, one value an entry
    cdef uint64_t *entries          # 0, 1, 2 ...: what a kernel packs to name the entries that pass
    cdef uint64_t *hits             # the entries that passed

    # The entry of a directory page under which a box belongs. `region` holds the page's boxes and the new one.
    cdef int choose(self, Bucket *b, const double *box, const double *region) except -1 nogil
    # Fills `hits` with those of `count` entries, from a multiple of 8 on, that contain a box; returns how many.
    cdef int find_containing(self, Bucket *b, int first, int count, const double *box) except -1 nogil

    cdef int make_room(self, int count) except -1 nogil
    cdef int choose_containing(self, Bucket *b, int hit_count) except -1 nogil
    cdef int choose_by_overlap(self, Bucket *b, const double *box) except -1 nogil
    cdef int cheapest(self, Bucket *b) except -2 nogil
    cdef double overlap_growth(self, Bucket *b, int entry, const double *box, double least) noexcept nogil
    cdef int count_below(self, Bucket *b, int entry) except -1 nogil
