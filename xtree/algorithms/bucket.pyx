"""Bucket pages: capacities, entries, and the checks that a page's bytes must pass before anything relies on them."""

from libc.stdint cimport INT64_MAX, INT64_MIN, uint64_t
from libc.string cimport memcpy, memmove

import numpy as np

from xtree.persistence.pages.page cimport PAGE_FORMAT, PAGE_MAGIC, SIZE_CLASSES, class_bytes
from xtree.persistence.pages.page_checksum cimport page_crc
from xtree.persistence.store.store cimport Store, register_kind, resolve

from xtree.errors import CorruptionError, FormatVersionError

cdef enum:
    LEAST_BASE_ENTRIES = 48         # in a page of the base size that is picked for given dims; measured
    LEAST_ENTRIES = 8               # in a page of a base size that the caller asks for

PAGE_KINDS = (KIND_LEAF, KIND_DIRECTORY)

if sizeof(Bucket) != HEADER_BYTES:
    raise ImportError(f"the header of a bucket has {sizeof(Bucket)} bytes, expected {HEADER_BYTES}")


cdef int make_geometry(Geometry *g, int dims, int base_class, double max_overlap, double min_fanout,
                       double min_fill) except -1:
    cdef int size_class
    if not 1 <= dims <= MAX_DIMS:
        raise ValueError(f"dims must be 1 to {MAX_DIMS}, got {dims}")
    if not 0.0 <= max_overlap <= 1.0:
        raise ValueError(f"max_overlap must be 0 to 1, got {max_overlap}")
    if not 0.0 < min_fanout <= 0.5:
        raise ValueError(f"min_fanout must be above 0, at most 0.5, got {min_fanout}")
    if not 0.0 < min_fill <= 0.5:
        raise ValueError(f"min_fill must be above 0, at most 0.5, got {min_fill}")
    if base_class == -1:
        base_class = 0
        while column_capacity(dims, class_bytes(base_class), True) < LEAST_BASE_ENTRIES:
            base_class += 1
    if not 0 <= base_class < SIZE_CLASSES:
        raise ValueError(f"no such size class: {base_class}")
    for size_class in range(SIZE_CLASSES):
        g.capacity[0][size_class] = column_capacity(dims, class_bytes(size_class), False)
        g.capacity[1][size_class] = column_capacity(dims, class_bytes(size_class), True)
    g.dims = dims
    g.base_class = base_class
    g.leaf_capacity = g.capacity[0][base_class]
    g.block_capacity = g.capacity[1][base_class]
    g.max_overlap = max_overlap
    g.min_fanout = min_fanout
    g.min_fill = min_fill
    if g.block_capacity < LEAST_ENTRIES:
        raise ValueError(f"pages of {class_bytes(base_class)} bytes are too small for {dims} dims")
    return 0


cdef int entry_limit(const Geometry *g, const Bucket *b) noexcept nogil:
    cdef int room = stride(g, b)
    cdef int limit
    if b.kind == KIND_LEAF:
        limit = g.leaf_capacity
    elif b.blocks <= 1:
        limit = g.block_capacity
    else:
        limit = column_capacity(g.dims, b.blocks * class_bytes(g.base_class), True)
    return limit if limit < room else room


cdef void get_box(const Geometry *g, Bucket *b, int entry, double *box) noexcept nogil:
    cdef int i
    cdef int step = stride(g, b)
    cdef const double *column = lower(g, b, 0)
    for i in range(2 * g.dims):
        box[i] = column[i * step + entry]


cdef void set_entry(const Geometry *g, Bucket *b, int entry, const double *box, uint64_t ref,
                    uint64_t split_history) noexcept nogil:
    cdef int i
    cdef int step = stride(g, b)
    cdef double *column = lower(g, b, 0)
    for i in range(2 * g.dims):
        column[i * step + entry] = box[i]
    refs(g, b)[entry] = ref
    if b.kind == KIND_DIRECTORY:
        history(g, b)[entry] = split_history


cdef void append_entry(const Geometry *g, Bucket *b, const double *box, uint64_t ref,
                       uint64_t split_history) noexcept nogil:
    set_entry(g, b, b.count, box, ref, split_history)
    b.count += 1


cdef void insert_entry(const Geometry *g, Bucket *b, int position, const double *box, uint64_t ref,
                       uint64_t split_history) noexcept nogil:
    cdef int i
    cdef int step = stride(g, b)
    cdef size_t behind = b.count - position
    cdef uint64_t *place = <uint64_t *>lower(g, b, 0) + position
    if behind:
        for i in range(_columns(g, b)):
            memmove(place + i * step + 1, place + i * step, behind * sizeof(uint64_t))
    set_entry(g, b, position, box, ref, split_history)
    b.count += 1


cdef void remove_entry(const Geometry *g, Bucket *b, int entry) noexcept nogil:
    # Every column holds words of 8 bytes, so one loop moves them all; the vacated place is zeroed.
    cdef int step = stride(g, b)
    cdef int last = b.count - 1
    cdef uint64_t *column = <uint64_t *>lower(g, b, 0)
    for _ in range(_columns(g, b)):
        if b.kind == KIND_DIRECTORY:
            memmove(column + entry, column + entry + 1, (last - entry) * sizeof(uint64_t))
        else:
            column[entry] = column[last]
        column[last] = 0
        column += step
    b.count = last


cdef void copy_entries(const Geometry *g, Bucket *source, Bucket *target) noexcept nogil:
    cdef int i
    cdef uint64_t *from_column = <uint64_t *>lower(g, source, 0)
    cdef uint64_t *to_column = <uint64_t *>lower(g, target, 0)
    for i in range(_columns(g, source)):
        memcpy(to_column + i * stride(g, target), from_column + i * stride(g, source), 8 * <size_t>source.count)
    target.count = source.count
    target.least_id = source.least_id
    target.most_id = source.most_id


cdef void bounding_box(const Geometry *g, Bucket *b, double *box) noexcept nogil:
    cdef int axis, entry
    cdef int count = b.count
    cdef const double *low
    cdef const double *high
    cdef double least, most
    for axis in range(g.dims):
        low = lower(g, b, axis)
        high = upper(g, b, axis)
        least = low[0]
        most = high[0]
        for entry in range(1, count):
            least = low[entry] if low[entry] < least else least
            most = high[entry] if high[entry] > most else most
        box[axis] = least
        box[g.dims + axis] = most


cdef void init_bucket(const Geometry *g, Bucket *b, int level, int blocks) noexcept nogil:
    b.flags = 0
    b.level = <uint16_t>level
    b.dims = <uint16_t>g.dims
    b.count = 0
    b.blocks = <uint16_t>blocks
    b.least_id = INT64_MAX
    b.most_id = INT64_MIN


cdef inline int _columns(const Geometry *g, const Bucket *b) noexcept nogil:
    return 2 * g.dims + (2 if b.kind == KIND_DIRECTORY else 1)


cdef const char *_verify(const char *page, int size_class) noexcept nogil:
    """What is wrong with one of our pages, whatever its bytes are; NULL when a reader may rely on its counts."""
    cdef const Bucket *b = <const Bucket *>page
    cdef bint directory = b.kind == KIND_DIRECTORY
    if b.size_class != size_class or size_class >= SIZE_CLASSES:
        return "the page's size class is not its slot's"
    if b.flags != 0:
        return "unknown flags"
    if b.dims < 1 or b.dims > MAX_DIMS:
        return "dims outside 1 to 64"
    if (b.level > 0) != directory:
        return "the level does not fit the kind"
    if b.blocks < 1 or b.blocks * class_bytes(0) > class_bytes(size_class) or (b.blocks > 1 and not directory):
        return "more blocks than the size class holds"
    if b.count > <uint32_t>column_capacity(b.dims, class_bytes(size_class), directory):
        return "more entries than the page holds"
    return NULL


def describe(Store store, node: int) -> dict:
    """A page as a dict: kind, level, dims, count, blocks, size_class, ids (their bounds), and copies of its columns.

    `boxes` is (count, 2 * dims) float64; `refs` is (count,), int64 record ids of a leaf or uint64 NodeIDs of a
    directory; `history` is (count,) uint64, of a directory only. Raises CorruptionError.
    """
    cdef NodeID name = node
    cdef char *page
    with nogil:
        page = resolve(store, name)
    if (<Bucket *>page).kind != KIND_LEAF and (<Bucket *>page).kind != KIND_DIRECTORY:
        raise ValueError(f"node {node} is a page of kind {(<Bucket *>page).kind}, not of an X-tree")
    return _describe(page)


def header_of(const unsigned char[::1] page not None) -> dict:
    """The fields of a page's header, unchecked, and the CRC computed from the page's bytes."""
    cdef const Bucket *b
    if page.shape[0] < HEADER_BYTES:
        raise ValueError(f"a page has at least {HEADER_BYTES} bytes, got {page.shape[0]}")
    b = <const Bucket *>&page[0]
    return {
        "magic": b.magic,
        "crc": b.crc,
        "computed_crc": page_crc(<const char *>&page[0], page.shape[0]),
        "node": b.node_id,
        "kind": b.kind,
        "size_class": b.size_class,
        "format": b.format,
        "flags": b.flags,
        "level": b.level,
        "dims": b.dims,
        "count": b.count,
        "blocks": b.blocks,
        "ids": (b.least_id, b.most_id),
    }


def parse(const unsigned char[::1] page not None) -> dict:
    """The dict of `describe`, for the bytes of a whole page from any source, and its NodeID as `node`.

    Raises CorruptionError for bytes that aren't a valid page of an X-tree by themselves, FormatVersionError.
    """
    header = header_of(page)
    cdef int size_class = header["size_class"]
    cdef const char *wrong
    if header["magic"] != PAGE_MAGIC:
        raise CorruptionError(f"expected the magic {PAGE_MAGIC:#010x} of a page, found {header['magic']:#010x}")
    if header["crc"] != header["computed_crc"]:
        raise CorruptionError(f"expected the CRC {header['computed_crc']:#010x} of the page's bytes, "
                              f"found {header['crc']:#010x} in its header")
    if header["format"] != PAGE_FORMAT:
        raise FormatVersionError(f"expected page format {PAGE_FORMAT}, found {header['format']}")
    if header["kind"] != KIND_LEAF and header["kind"] != KIND_DIRECTORY:
        raise CorruptionError(f"expected a page of an X-tree, found kind {header['kind']}")
    if size_class >= SIZE_CLASSES or class_bytes(size_class) != <uint64_t>page.shape[0]:
        raise CorruptionError(f"expected a page of {page.shape[0]} bytes, found size class {size_class}")
    wrong = _verify(<const char *>&page[0], size_class)
    if wrong != NULL:
        raise CorruptionError(f"expected a page that can be, found {wrong.decode()}")
    return {"node": header["node"], **_describe(<const char *>&page[0])}


cdef dict _describe(const char *page):
    cdef const Bucket *b = <const Bucket *>page
    cdef bint directory = b.kind == KIND_DIRECTORY
    cdef Py_ssize_t step = column_capacity(b.dims, class_bytes(b.size_class), directory)
    cdef Py_ssize_t columns = 2 * b.dims + (2 if directory else 1)
    words = np.empty((columns, b.count), dtype=np.uint64)
    cdef uint64_t[:, ::1] view = words
    cdef const uint64_t *column = <const uint64_t *>(page + HEADER_BYTES)
    cdef Py_ssize_t i, entry
    for i in range(columns):
        for entry in range(b.count):
            view[i, entry] = column[i * step + entry]
    described = {
        "kind": "directory" if directory else "leaf",
        "level": b.level,
        "dims": b.dims,
        "count": b.count,
        "blocks": b.blocks,
        "size_class": b.size_class,
        "ids": (b.least_id, b.most_id),
        "boxes": np.ascontiguousarray(words[:2 * b.dims].view(np.float64).T),
        "refs": words[2 * b.dims] if directory else words[2 * b.dims].view(np.int64),
    }
    if directory:
        described["history"] = words[2 * b.dims + 1]
    return described


def entry_limits(int dims, page_bytes: int | None = None) -> tuple[int, int]:
    """(records a leaf holds, entries a directory page of one block holds) of a tree of `dims` axes."""
    cdef Geometry g
    make_geometry(&g, dims, size_class_of(page_bytes), 0.2, 0.35, 0.4)
    return g.leaf_capacity, g.block_capacity


def size_class_of(page_bytes: int | None) -> int:
    """The size class of pages of `page_bytes` bytes; -1 for None. Raises ValueError."""
    if page_bytes is None:
        return -1
    for size_class in range(SIZE_CLASSES):
        if class_bytes(size_class) == page_bytes:
            return size_class
    sizes = ", ".join(str(class_bytes(size_class)) for size_class in range(SIZE_CLASSES))
    raise ValueError(f"page_bytes must be one of {sizes}, got {page_bytes}")


register_kind(KIND_LEAF, _verify)
register_kind(KIND_DIRECTORY, _verify)
