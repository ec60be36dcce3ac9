"""Geometry on boxes that must hold for any finite coordinates, from denormals to 1.8e308."""

from libc.math cimport INFINITY

cdef double SHIFT_DOWN = 2.0 ** -2      # keeps the extent of [-max, max] finite
cdef double SHIFT_UP = 2.0 ** 600       # keeps the reciprocal of a denormal extent finite
cdef double TINY_EXTENT = 2.0 ** -960   # coordinates this close together are below 2**-906, if they differ at all


cdef void make_frame(Frame *frame, int dims, const double *region) noexcept nogil:
    cdef int axis
    cdef double extent
    cdef double longest = 0.0
    cdef double unit = 1.0
    frame.dims = dims
    for axis in range(dims):
        extent = region[dims + axis] - region[axis]
        frame.shift[axis] = 1.0
        if extent == INFINITY:
            unit = frame.shift[axis] = SHIFT_DOWN
        elif 0.0 < extent < TINY_EXTENT:
            frame.shift[axis] = SHIFT_UP
        frame.origin[axis] = region[axis] * frame.shift[axis]
        extent = region[dims + axis] * frame.shift[axis] - frame.origin[axis]
        frame.scale[axis] = 1.0 / extent if extent > 0.0 else 0.0
    for axis in range(dims):
        frame.weight[axis] = region[dims + axis] * unit - region[axis] * unit
        longest = frame.weight[axis] if frame.weight[axis] > longest else longest
    for axis in range(dims):
        frame.weight[axis] = frame.weight[axis] / longest if longest > 0.0 else 1.0


cdef double box_volume(const Frame *frame, const double *box) noexcept nogil:
    cdef int axis
    cdef int dims = frame.dims
    cdef double shift, volume = 1.0
    for axis in range(dims):
        if frame.scale[axis] > 0.0:
            shift = frame.shift[axis]
            volume *= (box[dims + axis] * shift - box[axis] * shift) * frame.scale[axis]
    return volume


cdef double box_margin(const Frame *frame, const double *box) noexcept nogil:
    cdef int axis
    cdef int dims = frame.dims
    cdef double shift, margin = 0.0
    for axis in range(dims):
        shift = frame.shift[axis]
        margin += (box[dims + axis] * shift - box[axis] * shift) * frame.scale[axis] * frame.weight[axis]
    return margin


cdef double box_overlap(const Frame *frame, const double *a, const double *b) noexcept nogil:
    cdef int axis
    cdef int dims = frame.dims
    cdef double shift, low, high, overlap = 1.0
    for axis in range(dims):
        low = a[axis] if a[axis] > b[axis] else b[axis]
        high = a[dims + axis] if a[dims + axis] < b[dims + axis] else b[dims + axis]
        if low > high:
            return 0.0
        if frame.scale[axis] > 0.0:
            shift = frame.shift[axis]
            overlap *= (high * shift - low * shift) * frame.scale[axis]
    return overlap
