"""Real numbers: any array-like of them as a float64 array of the same shape and the same values.

The values are exactly equal to what went in; where they can't be, TypeError, DimensionError or InvalidBoxError is
raised. An array that has the right form already is passed on as it is, not copied.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY

import numpy as np

from xtree.errors import DimensionError, InvalidBoxError

cdef enum:
    MANTISSA_BITS = 53              # an integer with no more significant bits is exact in float64

cdef object FLOAT64 = np.dtype(np.float64)
cdef object empty = np.empty
cdef object asarray = np.asarray
cdef object ndarray = np.ndarray


def real_numbers(given):
    """The numbers of an array-like, float64 of the same shape. Raises TypeError, DimensionError, InvalidBoxError."""
    return numbers_of(given)


cdef object numbers_of(object given):
    if isinstance(given, tuple):
        return from_sequence(<tuple>given)
    if isinstance(given, list):
        return from_sequence(tuple(given))
    array = array_of(given, InvalidBoxError)
    require_real(array, given)
    return from_array(array)


cdef object array_of(object given, error):
    """An array-like as an array. Raises `error` where a mask hides a value, since it has none there."""
    if type(given) is not ndarray and isinstance(given, ndarray) and np.ma.is_masked(given):
        place = tuple(int(i) for i in np.argwhere(np.ma.getmaskarray(given))[0])
        raise error(f"the value{place_in(place)} is masked")
    return asarray(given)


cdef int require_real(array, given) except -1:
    """Raises TypeError, with a name for what was given, unless the array is one of real numbers."""
    if array.dtype.kind not in "fiu":
        raise TypeError(f"boxes and points are made of real numbers, got {called(array, given)}")
    return 0


cdef object called(array, given):
    """A name, for a message, for what was given and became this array."""
    if array.ndim == 0 and not isinstance(given, ndarray):
        return f"a {type(given).__name__}"
    return "an array of objects" if array.dtype.kind == "O" else f"an array of {array.dtype}"


cdef str place_in(tuple place):
    """Where in an array, for a message."""
    if len(place) == 1:
        return cell(-1, place[0])
    return cell(place[0], place[1]) if len(place) == 2 else ""


cdef str cell(Py_ssize_t row, Py_ssize_t column):
    return f" at index {column}" if row < 0 else f" at row {row}, column {column}"


cdef object from_array(array):
    """An array of real numbers as float64, C-contiguous. Raises InvalidBoxError for what float64 can't hold."""
    if array.dtype.kind == "f":
        if array.dtype.itemsize <= 8:
            return plain(array, FLOAT64)
        return exact_floats(array)
    return exact_integers(array)


cdef object plain(array, dtype):
    """The array as an aligned, C-contiguous one of this dtype; itself when it is one."""
    if array.dtype is dtype:
        flags = array.flags
        if flags.c_contiguous and flags.aligned:
            return array
    return np.require(array, dtype, ("C", "A"))


cdef object exact_integers(array):
    """Integers as float64. Raises InvalidBoxError for one that float64 can't hold."""
    if array.dtype.itemsize == 8 and array.size:
        # |x| as uint64: correct for the least int64 too, whose absolute value wraps to itself.
        magnitude = np.abs(array).astype(np.uint64) if array.dtype.kind == "i" else array
        lowest_bit = magnitude & (~magnitude + np.uint64(1))
        significant = magnitude // np.maximum(lowest_bit, np.uint64(1))
        require_exact(array, significant >> np.uint64(MANTISSA_BITS) == 0)
    return plain(array.astype(FLOAT64), FLOAT64)


cdef object exact_floats(array):
    """Floats wider than float64 as float64. Raises InvalidBoxError for one that float64 can't hold."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(FLOAT64)
    require_exact(array, (narrow == array) | np.isnan(array))
    return plain(narrow, FLOAT64)


cdef int require_exact(array, exact) except -1:
    if not exact.all():
        place = tuple(int(i) for i in np.argwhere(~exact)[0])
        raise InvalidBoxError(f"invalid box: {array[place]}{place_in(place)} has no exact value in float64")
    return 0


cdef object from_sequence(tuple items):
    """A tuple of numbers as (n,), a tuple of rows as (n, width)."""
    cdef Py_buffer view
    cdef Py_ssize_t i = 0, n = len(items)
    out = empty(n)
    PyObject_GetBuffer(out, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
    try:
        while i < n and read_number(items[i], <double *>view.buf + i, -1, i):
            i += 1
            if i % READ_AT_ONCE == 0:
                PyErr_CheckSignals()
    finally:
        PyBuffer_Release(&view)
    if i == n:
        return out
    if i > 0:
        raise DimensionError(f"got {i} numbers and then a {type(items[i]).__name__}; expected numbers, or rows")
    return from_rows(items)


cdef object from_rows(tuple rows):
    """A tuple of rows, each a sequence or an array, as (n, width)."""
    cdef Py_buffer view
    cdef Py_ssize_t row, i
    cdef Py_ssize_t width = len(row_items(rows[0], 0))
    cdef double *cell
    cdef tuple items
    out = empty((len(rows), width))
    PyObject_GetBuffer(out, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
    cell = <double *>view.buf
    try:
        for row in range(len(rows)):
            if row % READ_AT_ONCE == 0:
                PyErr_CheckSignals()
            items = row_items(rows[row], row)
            if len(items) != width:
                raise DimensionError(f"row {row} has {len(items)} numbers, row 0 has {width}")
            for i in range(width):
                if not read_number(items[i], cell, row, i):
                    raise DimensionError(f"row {row} holds a {type(items[i]).__name__}, expected numbers")
                cell += 1
    finally:
        PyBuffer_Release(&view)
    return out


cdef tuple row_items(given, Py_ssize_t row):
    if isinstance(given, (list, tuple)):
        return tuple(given)
    array = array_of(given, InvalidBoxError)
    require_real(array, given)
    if array.ndim != 1:
        raise DimensionError(f"row {row} has shape {array.shape}, expected a row of numbers")
    return tuple(array.tolist())


cdef bint read_number(object item, double *out, Py_ssize_t row, Py_ssize_t column) except -1:
    """Reads one number; False when the item is a row of numbers instead. `row` is negative if it is in no row."""
    return read_plain_number(item, out) or read_rare_number(item, out, row, column)


cdef bint read_rare_number(object item, double *out, Py_ssize_t row, Py_ssize_t column) except -1:
    if isinstance(item, (list, tuple)):
        return False
    if isinstance(item, int) and not isinstance(item, bool):
        try:
            value = float(item)
        except OverflowError:
            value = INFINITY
        if value != item:
            raise InvalidBoxError(f"invalid box: the integer {shown(item)}{cell(row, column)} has no exact value in "
                                  "float64")
        out[0] = value
        return True
    array = array_of(item, InvalidBoxError)
    if array.ndim > 0:
        return False
    if array.dtype.kind not in "fiu":
        raise TypeError(f"boxes and points are made of real numbers, got a {type(item).__name__}{cell(row, column)}")
    if array.dtype.kind != "f":
        return read_rare_number(array.item(), out, row, column)
    with np.errstate(over="ignore", under="ignore"):
        value = array.astype(FLOAT64).item()
    if value != item and value == value:
        raise InvalidBoxError(f"invalid box: {item}{cell(row, column)} has no exact value in float64")
    out[0] = value
    return True


cdef object shown(item):
    """An integer for a message: huge ones by their size only."""
    return str(item) if item.bit_length() <= 256 else f"of {item.bit_length()} bits"
