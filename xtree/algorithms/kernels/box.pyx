"""Geometry on boxes that must hold for any finite coordinates, from denormals to 1.8e308."""

import numpy as np

# Extents beyond these would have an infinite or a denormal reciprocal, or be infinite themselves.
cdef double HUGE_EXTENT = 2.0 ** 960
TINY_EXTENT = 2.0 ** -960
TINY_COORDINATE = 2.0 ** -906
cdef double SHIFT_DOWN = 2.0 ** -64
SHIFT_UP = 2.0 ** 600


cdef void make_unit_space(UnitSpace *space, int dims, const double *region) noexcept nogil:
    cdef int axis
    cdef double extent
    cdef double longest = 0.0
    cdef double unit = 1.0
    space.dims = dims
    for axis in range(dims):
        extent = region[dims + axis] - region[axis]
        space.shift[axis] = 1.0
        if extent > HUGE_EXTENT:
            unit = space.shift[axis] = SHIFT_DOWN
        elif 0.0 < extent < TINY_EXTENT:
            space.shift[axis] = SHIFT_UP
        space.origin[axis] = region[axis] * space.shift[axis]
        extent = region[dims + axis] * space.shift[axis] - space.origin[axis]
        space.scale[axis] = 1.0 / extent if extent > 0.0 else 0.0
    for axis in range(dims):
        space.weight[axis] = region[dims + axis] * unit - region[axis] * unit
        longest = space.weight[axis] if space.weight[axis] > longest else longest
    for axis in range(dims):
        space.weight[axis] = space.weight[axis] / longest if longest > 0.0 else 1.0


cdef double box_volume(const UnitSpace *space, const double *box) noexcept nogil:
    cdef int axis
    cdef int dims = space.dims
    cdef double shift, volume = 1.0
    for axis in range(dims):
        if space.scale[axis] > 0.0:
            shift = space.shift[axis]
            volume *= (box[dims + axis] * shift - box[axis] * shift) * space.scale[axis]
    return volume


cdef double box_margin(const UnitSpace *space, const double *box) noexcept nogil:
    cdef int axis
    cdef int dims = space.dims
    cdef double shift, margin = 0.0
    for axis in range(dims):
        shift = space.shift[axis]
        margin += (box[dims + axis] * shift - box[axis] * shift) * space.scale[axis] * space.weight[axis]
    return margin


cdef double box_overlap(const UnitSpace *space, const double *a, const double *b) noexcept nogil:
    cdef int axis
    cdef int dims = space.dims
    cdef double shift, low, high, overlap = 1.0
    for axis in range(dims):
        low = a[axis] if a[axis] > b[axis] else b[axis]
        high = a[dims + axis] if a[dims + axis] < b[dims + axis] else b[dims + axis]
        if low > high:
            return 0.0
        if space.scale[axis] > 0.0:
            shift = space.shift[axis]
            overlap *= (high * shift - low * shift) * space.scale[axis]
    return overlap


def contains(const double[::1] outer not None, const double[::1] inner not None) -> bool:
    """Whether one box (2 * dims,) contains another; touching sides count as inside."""
    return box_contains(&outer[0], &inner[0], dims_of(outer, inner))


def equal(const double[::1] a not None, const double[::1] b not None) -> bool:
    """Whether two boxes (2 * dims,) are equal by value."""
    return boxes_equal(&a[0], &b[0], dims_of(a, b))


def union(const double[::1] a not None, const double[::1] b not None) -> np.ndarray:
    """The least box (2 * dims,) around two."""
    cdef int dims = dims_of(a, b)
    both = np.array(a)
    cdef double[::1] view = both
    extend_box(&view[0], &b[0], dims)
    return both


def measures(const double[::1] region not None, const double[::1] a not None,
             const double[::1] b not None) -> tuple[float, float, float]:
    """(volume of a, margin of a, volume that a shares with b), of boxes inside a region, in the region's space."""
    cdef UnitSpace space
    dims_of(region, a)
    make_unit_space(&space, dims_of(region, b), &region[0])
    return box_volume(&space, &a[0]), box_margin(&space, &a[0]), box_overlap(&space, &a[0], &b[0])


cdef int dims_of(const double[::1] a, const double[::1] b) except -1:
    """The number of axes of two boxes. Raises ValueError unless it is the same, from 1 to MAX_DIMS."""
    if a.shape[0] != b.shape[0] or a.shape[0] % 2 or not 2 <= a.shape[0] <= 2 * MAX_DIMS:
        raise ValueError(f"got boxes of {a.shape[0]} and {b.shape[0]} numbers, expected twice the dims of both")
    return <int>a.shape[0] // 2
