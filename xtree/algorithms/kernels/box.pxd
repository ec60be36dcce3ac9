"""Geometry on boxes: rows of doubles `[min_0 .. min_{d-1}, max_0 .. max_{d-1}]`.

Comparisons are by value and exact. Measures steer heuristics only, and are taken in a UnitSpace: the coordinates of
one page brought into [0, 1] axis by axis, so that no product of up to 64 extents overflows and no difference of
finite coordinates is infinite. Sums and products run over the axes in ascending order, everywhere.
"""

cdef enum:
    MAX_DIMS = 64


# Intervals shorter than TINY_EXTENT have a reciprocal that is infinite or nearly so. Coordinates that differ by so
# little are below TINY_COORDINATE, and may be shifted up.
cdef double TINY_EXTENT, TINY_COORDINATE, SHIFT_UP


# The region in which measures are taken. On an axis where the region has no extent every box in it agrees, so
# that axis is left out of volumes and margins instead of making all of them zero.
cdef struct UnitSpace:
    int dims
    double shift[MAX_DIMS]          # power of two that keeps differences finite and reciprocals finite
    double origin[MAX_DIMS]         # lower bound of the region, shifted
    double scale[MAX_DIMS]          # 1 / extent of the shifted region; 0 on an axis without extent
    double weight[MAX_DIMS]         # the region's extent as a share of its longest: turns unit lengths into margins


cdef inline double lift_of(double least, double most) noexcept nogil:
    """The power of two that brings coordinates between two bounds, and their differences, out of the denormals."""
    return SHIFT_UP if -TINY_COORDINATE < least and most < TINY_COORDINATE and most - least < TINY_EXTENT else 1.0


# Makes the space of a region, which must contain every box that is measured in it.
cdef void make_unit_space(UnitSpace *space, int dims, const double *region) noexcept nogil


cdef inline double to_unit(const UnitSpace *space, int axis, double x) noexcept nogil:
    """A coordinate of the region as a number from 0 to 1; monotone in x."""
    return (x * space.shift[axis] - space.origin[axis]) * space.scale[axis]


cdef inline bint box_contains(const double *outer, const double *inner, int dims) noexcept nogil:
    cdef int axis
    for axis in range(dims):
        if outer[axis] > inner[axis] or outer[dims + axis] < inner[dims + axis]:
            return False
    return True


cdef inline bint boxes_equal(const double *a, const double *b, int dims) noexcept nogil:
    """By value: 0.0 equals -0.0."""
    cdef int i
    for i in range(2 * dims):
        if a[i] != b[i]:
            return False
    return True


cdef inline void copy_box(double *target, const double *source, int dims) noexcept nogil:
    cdef int i
    for i in range(2 * dims):
        target[i] = source[i]


cdef inline void extend_box(double *target, const double *box, int dims) noexcept nogil:
    """Makes `target` the least box around itself and `box`."""
    cdef int axis
    for axis in range(dims):
        if box[axis] < target[axis]:
            target[axis] = box[axis]
        if box[dims + axis] > target[dims + axis]:
            target[dims + axis] = box[dims + axis]


# Measures of boxes inside the unit space's region: volume and overlap as shares of the region, margin in units of its
# longest extent.
cdef double box_volume(const UnitSpace *space, const double *box) noexcept nogil
cdef double box_margin(const UnitSpace *space, const double *box) noexcept nogil
cdef double box_overlap(const UnitSpace *space, const double *a, const double *b) noexcept nogil
