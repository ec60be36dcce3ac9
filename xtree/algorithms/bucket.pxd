"""Bucket: the page of an X-tree, a leaf of records or a directory of children.

64 bytes of header, then columns, each 64-byte aligned (capacities are multiples of 8): lower bound of each axis,
upper bound of each axis, refs (record id in a leaf, child NodeID in a directory), and in a directory the split
history of each entry as a bitset of axes. Capacity follows from size class and dims. docs/format.md has the table.

The header bounds the ids of all records in the page or below it, as boxes bound their places. Removal skips a page
whose bounds don't contain the id, and choose-subtree decides by them between equal boxes. Entries of a directory page
that have equal boxes are in the order of their least ids, as long as nothing else moves them. That is a hint: no answer
depends on it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from xtree.algorithms.kernels.box cimport MAX_DIMS
from xtree.persistence.pages.node_id cimport NodeID
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes

cdef enum:
    KIND_LEAF = 1                   # kinds of page: never renumber
    KIND_DIRECTORY = 2
    HEADER_BYTES = 64
    FLAG_RECORD_EPOCHS = 1          # two more columns per record, birth and retire epoch; no page carries it yet


cdef struct Bucket:                 # the header; begins with PagePrefix
    uint32_t magic
    uint32_t crc
    NodeID node_id
    uint8_t kind
    uint8_t size_class
    uint16_t format
    uint32_t flags
    uint16_t level                  # 0 for a leaf
    uint16_t dims
    uint32_t count                  # entries
    uint16_t blocks                 # of the base page size: how many this page may fill; more than one: a supernode
    uint16_t reserved_16
    uint32_t reserved_32
    int64_t least_id                # no record in the page or below it has a smaller id
    int64_t most_id                 # nor a greater one
    uint64_t reserved_64


cdef struct Geometry:               # what never changes in the life of a tree, computed once
    int dims
    int base_class                  # size class of a page that is not a supernode
    int leaf_capacity               # entries of a leaf
    int block_capacity              # entries of a directory page of one block
    int capacity[2][SIZE_CLASSES]   # [is directory][size class]: the columns' stride
    double max_overlap              # a topological directory split that overlaps more is refused (0.2)
    double min_fanout               # the smaller side of an overlap-minimal split holds at least this share (0.35)
    double min_fill                 # least share on a side of a topological split; a leaf below it is dissolved (0.4)


# Number of entries in a page of `bytes` bytes, which is the stride of its columns: a multiple of 8.
cdef inline int column_capacity(int dims, uint64_t bytes, bint directory) noexcept nogil:
    return <int>((bytes - HEADER_BYTES) // (16 * dims + (16 if directory else 8))) & ~7


# Fills a geometry; base_class -1 picks the smallest class that holds at least 48 entries. Raises ValueError.
cdef int make_geometry(Geometry *g, int dims, int base_class, double max_overlap, double min_fanout,
                       double min_fill) except -1


cdef inline int stride(const Geometry *g, const Bucket *b) noexcept nogil:
    return g.capacity[b.kind == KIND_DIRECTORY][b.size_class]


# How many entries the page may hold before it must split or grow (a supernode of m blocks: as many as m blocks hold).
cdef int entry_limit(const Geometry *g, const Bucket *b) noexcept nogil


cdef inline double *lower(const Geometry *g, Bucket *b, int axis) noexcept nogil:
    return <double *>(<char *>b + HEADER_BYTES) + axis * stride(g, b)


cdef inline double *upper(const Geometry *g, Bucket *b, int axis) noexcept nogil:
    return <double *>(<char *>b + HEADER_BYTES) + (g.dims + axis) * stride(g, b)


cdef inline uint64_t *refs(const Geometry *g, Bucket *b) noexcept nogil:
    return <uint64_t *>(<char *>b + HEADER_BYTES) + 2 * g.dims * stride(g, b)


cdef inline uint64_t *history(const Geometry *g, Bucket *b) noexcept nogil:
    return <uint64_t *>(<char *>b + HEADER_BYTES) + (2 * g.dims + 1) * stride(g, b)


# A box as a row is [min_0 .. min_{d-1}, max_0 .. max_{d-1}].
cdef void get_box(const Geometry *g, Bucket *b, int entry, double *box) noexcept nogil
cdef void set_entry(const Geometry *g, Bucket *b, int entry, const double *box, uint64_t ref,
                    uint64_t split_history) noexcept nogil
cdef void append_entry(const Geometry *g, Bucket *b, const double *box, uint64_t ref,
                       uint64_t split_history) noexcept nogil
# Inserts an entry at a position; the entries from there on move up.
cdef void insert_entry(const Geometry *g, Bucket *b, int position, const double *box, uint64_t ref,
                       uint64_t split_history) noexcept nogil
# In a leaf the last entry moves into the place of the removed one; in a directory all entries after it move down.
cdef void remove_entry(const Geometry *g, Bucket *b, int entry) noexcept nogil
# Copies all entries of one bucket into another, empty one, of the same kind but perhaps another size class.
cdef void copy_entries(const Geometry *g, Bucket *source, Bucket *target) noexcept nogil
# The least box around all entries (count > 0).
cdef void bounding_box(const Geometry *g, Bucket *b, double *box) noexcept nogil
cdef inline void widen_ids(Bucket *b, int64_t least, int64_t most) noexcept nogil:
    if least < b.least_id:
        b.least_id = least
    if most > b.most_id:
        b.most_id = most


# Fills the header of a new page that WriteSet.reserve returned.
cdef void init_bucket(const Geometry *g, Bucket *b, int level, int blocks) noexcept nogil
