"""Conversion: what other compiled modules use of it."""

from libc.stdint cimport int64_t

# One id. Raises TypeError, OverflowError.
cdef int64_t read_id(object given) except? -1
# One box to keep, finite, or a point, in any form. Raises TypeError, DimensionError, InvalidBoxError.
cdef int read_stored_box(object given, int dims, double *box) except -1

# Reads one box or point in a form that needs no conversion: a tuple or list of floats and small ints, or a 1-D float64
# array. False, with nothing raised, for any other form and for a box that isn't valid: the long way says what is wrong.
cdef bint read_plain_box(object given, int dims, double *box) except -1
# The same for a point to ask with, of `dims` finite numbers. `row` has room for a box.
cdef bint read_plain_point(object given, int dims, double *row) except -1
