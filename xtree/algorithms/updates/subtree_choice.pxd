"""The choice of the subtree that a new box belongs under, as in the R*-tree. One thread at a time."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from xtree.algorithms.kernels.box cimport UnitSpace
from xtree.algorithms.bucket cimport Bucket
from xtree.algorithms.kernels.key_sort cimport SortKey
from xtree.persistence.store.store cimport Store
from xtree.algorithms.tree_state cimport TreeState


@cython.final
cdef class SubtreeChooser:
    cdef Store store
    cdef TreeState state
    cdef UnitSpace space                # of the page whose entries are being compared
    cdef int room                   # entries there is space for
    cdef void *block                # one allocation for all that follows
    cdef double *measures           # MEASURES arrays of `room`, one value per entry
    cdef uint64_t *entries          # 0, 1, 2 ...: what a kernel packs to name the entries that pass
    cdef uint64_t *hits             # the entries that passed
    cdef uint64_t probes            # children whose ids were looked at, for tests

    # The entry of a directory page under which a record, or the subtree with this least id, belongs. `region` holds the
    # page's boxes and the new one.
    cdef int choose(self, Bucket *b, const double *box, int64_t id, const double *region) except -1 nogil
    # Fills `hits` with the entries that contain a box; returns how many.
    cdef int find_containing(self, Bucket *b, const double *box) except -1 nogil
    # The smallest of the first `hit_count` hits, each of which contains the box. Where several are as small, and mostly
    # equal, the last whose ids begin at or before `id`.
    cdef int choose_containing(self, Bucket *b, int hit_count, int64_t id, const double *region) except -1 nogil
    # All entries that contain a box, smallest first; sets how many. The memory is the caller's to release.
    cdef SortKey *order_containing(self, Bucket *b, const double *box, const double *region,
                                   int *count) except NULL nogil
    # Where a new entry of a directory page belongs: among those of an equal box by its least id, else after all.
    cdef int place_of(self, Bucket *b, const double *box, int64_t least_id) except -1 nogil

    cdef int make_room(self, int count) except -1 nogil
    cdef void measure_hits(self, Bucket *b, int hit_count, const double *region) noexcept nogil
    cdef int count_up_to(self, Bucket *b, int hit_count, int64_t id) except -1 nogil
    cdef int choose_by_overlap(self, Bucket *b, const double *box) except -1 nogil
    cdef int cheapest(self, Bucket *b) except -2 nogil
    cdef double overlap_growth(self, Bucket *b, int entry, const double *box, double least) noexcept nogil
    cdef Bucket *child(self, Bucket *b, int entry) except NULL nogil
