"""TreeState: parameters, root, size and bounds of one X-tree, and the bytes in which the catalog stores them."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport isfinite
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from xtree.algorithms.kernels.box cimport copy_box
from xtree.algorithms.bucket cimport KIND_DIRECTORY, KIND_LEAF, bounding_box, make_geometry
from xtree.persistence.base.memory cimport allocate_zeroed, release
from xtree.persistence.pages.page cimport SIZE_CLASSES, class_bytes

from xtree.algorithms.bucket import size_class_of
from xtree.errors import CorruptionError, FormatVersionError

cdef enum:
    STATE_FORMAT = 2
    STATE_HEADER_BYTES = 48


# The encoded state, little-endian: this header, then 2 * dims float64 of bounds (zeros for an empty tree).
#
#   offset  size  name         meaning
#        0     2  format       2
#        2     2  dims         1 to 64
#        4     2  levels       0 empty, 1 the root is a leaf
#        6     1  base_class   size class of a page that is no supernode
#        7     1  flags        0
#        8     8  records
#       16     8  max_overlap  float64, as are the next three
#       24     8  min_fanout
#       32     8  min_fill
#       40     8  leaf_fill
#
# The root's NodeID stands beside it in the catalog's entry, whose checksum covers both.
cdef struct StateHeader:
    uint16_t format
    uint16_t dims
    uint16_t levels
    uint8_t base_class
    uint8_t flags
    uint64_t records
    double max_overlap
    double min_fanout
    double min_fill
    double leaf_fill

if sizeof(StateHeader) != STATE_HEADER_BYTES:
    raise ImportError(f"the header of a tree's state has {sizeof(StateHeader)} bytes, expected {STATE_HEADER_BYTES}")


cdef class TreeState:
    """What is known of one X-tree without touching its pages: parameters, root, height, count, bounds."""

    def __dealloc__(self):
        release(self.box)

    cdef int make_box(self) except -1:
        """Allocates the bounds, all zero; the geometry must be set before.

        They have 2 * dims numbers, not 2 * MAX_DIMS: each tree has a state, and most trees have few dimensions.
        """
        self.box = <double *>allocate_zeroed(2 * self.g.dims, sizeof(double))
        if self.box == NULL:
            raise MemoryError("no memory for a tree's bounds")
        return 0

    @staticmethod
    def create(int dims, *, page_bytes: int | None = None, double max_overlap=0.2, double min_fanout=0.35,
               double min_fill=0.4, double leaf_fill=0.98) -> TreeState:
        """The state of an empty tree. Raises ValueError for a parameter out of range."""
        cdef TreeState state = TreeState.__new__(TreeState)
        make_geometry(&state.g, dims, size_class_of(page_bytes), max_overlap, min_fanout, min_fill)
        if not 2 * min_fill <= leaf_fill <= 1.0:
            raise ValueError(f"leaf_fill must be {2 * min_fill} (twice min_fill) to 1, got {leaf_fill}")
        state.leaf_fill = leaf_fill
        state.make_box()
        return state

    @staticmethod
    def decode(bytes data not None, root: int) -> TreeState:
        """The state that `encode` wrote, with its root. Raises CorruptionError, FormatVersionError."""
        cdef TreeState state = TreeState.__new__(TreeState)
        cdef StateHeader header
        cdef Py_ssize_t bounds_bytes
        if len(data) < STATE_HEADER_BYTES:
            raise CorruptionError(f"tree state of {len(data)} bytes, expected at least {STATE_HEADER_BYTES}")
        memcpy(&header, PyBytes_AS_STRING(data), STATE_HEADER_BYTES)
        if header.format != STATE_FORMAT:
            raise FormatVersionError(f"tree state has format {header.format}, this xtree reads {STATE_FORMAT}")
        if header.flags != 0 or header.base_class >= SIZE_CLASSES or header.levels > MAX_LEVELS:
            raise CorruptionError(f"tree state with flags {header.flags} (expected 0), size class {header.base_class} "
                                  f"(below {SIZE_CLASSES}), {header.levels} levels (at most {MAX_LEVELS})")
        try:
            make_geometry(&state.g, header.dims, header.base_class, header.max_overlap, header.min_fanout,
                          header.min_fill)
        except ValueError as error:
            raise CorruptionError(f"tree state: {error}") from None
        bounds_bytes = 2 * header.dims * sizeof(double)
        if len(data) != STATE_HEADER_BYTES + bounds_bytes:
            raise CorruptionError(f"tree state of {len(data)} bytes, expected {STATE_HEADER_BYTES + bounds_bytes}")
        state.make_box()
        memcpy(state.box, PyBytes_AS_STRING(data) + STATE_HEADER_BYTES, bounds_bytes)
        state.root = root
        state.levels = header.levels
        state.records = header.records
        state.leaf_fill = header.leaf_fill
        state._require_consistent()
        return state

    def encode(self) -> bytes:
        """The bytes that `decode` reads; the root isn't among them."""
        cdef StateHeader header
        cdef Py_ssize_t bounds_bytes = 2 * self.g.dims * sizeof(double)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, STATE_HEADER_BYTES + bounds_bytes)
        header.format = STATE_FORMAT
        header.dims = <uint16_t>self.g.dims
        header.levels = <uint16_t>self.levels
        header.base_class = <uint8_t>self.g.base_class
        header.flags = 0
        header.records = self.records
        header.max_overlap = self.g.max_overlap
        header.min_fanout = self.g.min_fanout
        header.min_fill = self.g.min_fill
        header.leaf_fill = self.leaf_fill
        memcpy(PyBytes_AS_STRING(data), &header, STATE_HEADER_BYTES)
        memcpy(PyBytes_AS_STRING(data) + STATE_HEADER_BYTES, self.box, bounds_bytes)
        return data

    def copy(self) -> TreeState:
        """An independent state, equal to this one."""
        cdef TreeState state = TreeState.__new__(TreeState)
        state.g = self.g
        state.make_box()
        state.root = self.root
        state.levels = self.levels
        state.records = self.records
        state.leaf_fill = self.leaf_fill
        copy_box(state.box, self.box, self.g.dims)
        return state

    @property
    def dims(self) -> int:
        """Number of axes."""
        return self.g.dims

    @property
    def height(self) -> int:
        """Levels of pages; 0 when empty."""
        return self.levels

    @property
    def count(self) -> int:
        """Number of records."""
        return self.records

    @property
    def root(self) -> int:
        """NodeID of the root page; 0 when empty."""
        return self.root

    @property
    def page_bytes(self) -> int:
        """Size of a page that isn't a supernode."""
        return class_bytes(self.g.base_class)

    @property
    def bounds(self) -> np.ndarray | None:
        """The least box around all records, (2 * dims,) float64; None when empty."""
        cdef double[::1] view
        if self.records == 0:
            return None
        bounds = np.empty(2 * self.g.dims)
        view = bounds
        copy_box(&view[0], self.box, self.g.dims)
        return bounds

    @property
    def parameters(self) -> dict:
        """The keyword arguments of `create` that make an empty tree like this one."""
        return {
            "page_bytes": self.page_bytes,
            "max_overlap": self.g.max_overlap,
            "min_fanout": self.g.min_fanout,
            "min_fill": self.g.min_fill,
            "leaf_fill": self.leaf_fill,
        }

    def __repr__(self) -> str:
        return f"TreeState(dims={self.dims}, count={self.count}, height={self.height}, root={self.root:#x})"

    cdef int refresh_bounds(self, Store store) except -1:
        """Sets the bounds from the root page: zeros when the tree is empty."""
        cdef Bucket *page
        cdef int i
        if self.root == 0:
            for i in range(2 * self.g.dims):
                self.box[i] = 0.0
            return 0
        with nogil:
            page = resolve_bucket(store, self, self.root, self.levels - 1)
            if page.count > 0:
                bounding_box(&self.g, page, self.box)
        return 0

    cdef int _require_consistent(self) except -1:
        cdef int axis
        cdef int dims = self.g.dims
        if (self.root == 0) != (self.levels == 0) or (self.root == 0) != (self.records == 0):
            raise CorruptionError(f"tree state with root {self.root:#x}, {self.levels} levels, {self.records} records")
        if self.records > <uint64_t>1 << 62:
            raise CorruptionError(f"tree state with {self.records} records, expected at most 2**62")
        if not 0.0 < self.leaf_fill <= 1.0:
            raise CorruptionError(f"tree state with leaf_fill {self.leaf_fill}, expected above 0, at most 1")
        for axis in range(dims):
            if not (isfinite(self.box[axis]) and isfinite(self.box[dims + axis])
                    and self.box[axis] <= self.box[dims + axis]):
                raise CorruptionError(f"tree state with bounds {self.box[axis]} to {self.box[dims + axis]} "
                                      f"on axis {axis}, expected finite and ascending")
        return 0


cdef int raise_wrong_page(TreeState state, NodeID node, int level, const Bucket *b) except -1 with gil:
    raise CorruptionError(
        f"page {node:#x} has kind {b.kind}, level {b.level}, {b.dims} dims; expected kind "
        f"{KIND_DIRECTORY if level else KIND_LEAF}, level {level}, {state.g.dims} dims")
