"""Conversion: boxes, points and ids as users pass them, turned once into the arrays that the tree works on.

Boxes come out as float64, C-contiguous, exactly equal to what went in. Where they can't, every function raises
TypeError, DimensionError, InvalidBoxError or OverflowError before anything else has happened. An array that has the
right form already is passed on as it is, not copied.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_Check
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from xtree.algorithms.kernels.arrays cimport raise_changed, read_box
from xtree.persistence.base.breath cimport Breath, first_breath, spend
from xtree.input.real_numbers cimport READ_AT_ONCE, array_of, called, numbers_of, plain, read_plain_number, shown

import operator

import numpy as np

from xtree.errors import DimensionError, InvalidBoxError
from xtree.input.rows import ids_given, rows_to_ask, rows_to_store

cdef enum:
    JUDGED_AT_ONCE = 4096           # rows of an array

cdef object FLOAT64 = np.dtype(np.float64)
cdef object INT64 = np.dtype(np.int64)
cdef object empty = np.empty
cdef object ndarray = np.ndarray

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


# Boxes and points.

def query_boxes(given, int dims):
    """Boxes to ask with: (2*dims,) for one, (m, 2*dims) for many; infinite bounds are fine, points become boxes."""
    return boxes_of(given, dims, False)


def stored_boxes(given, int dims):
    """Boxes to keep, (n, 2*dims): finite. One box in 1-D form becomes one row."""
    boxes = boxes_of(given, dims, True)
    return boxes if boxes.ndim == 2 else boxes.reshape(1, -1)


cdef int read_stored_box(object given, int dims, double *box) except -1:
    cdef Py_buffer view
    cdef bint valid
    cdef Py_ssize_t n = read_plain_row(given, dims, box)
    if n == dims:
        memcpy(box + dims, box, dims * sizeof(double))
    if n > 0 and first_invalid(box, 1, dims, True) < 0:
        return 0
    boxes = boxes_of(given, dims, True)
    if boxes.ndim == 2:
        raise DimensionError(f"got {len(boxes)} boxes, expected one of shape ({2 * dims},), or a point ({dims},)")
    PyObject_GetBuffer(boxes, &view, PyBUF_STRIDES)
    valid = read_box(<const double *>view.buf, dims, box)
    PyBuffer_Release(&view)
    if not valid:
        raise_changed(0)
    return 0


def finite_points(given, int dims):
    """Points to ask with: (dims,) for one, (m, dims) for many. Raises ValueError for one that isn't finite."""
    points = numbers_of(given)
    if points.ndim == 1 and len(points) == 0:
        return empty((0, dims))
    if points.ndim not in (1, 2) or points.shape[points.ndim - 1] != dims:
        raise DimensionError(f"got points of shape {points.shape}, expected ({dims},) or (m, {dims})")
    finite = np.isfinite(points)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        row = "" if points.ndim == 1 else f"row {place[0]}, "
        raise ValueError(f"point not finite: {row}axis {place[points.ndim - 1]} is {points[place]}")
    return points


def width_of(given, bint points=False):
    """The array that `given` is, and the length of its last axis. Raises DimensionError when it tells no width."""
    boxes = numbers_of(given if is_plain(given) else rows_to_store(given, None, points))
    if boxes.ndim not in (1, 2) or boxes.shape[boxes.ndim - 1] == 0:
        raise DimensionError(f"boxes of shape {boxes.shape} don't tell their dimension; give dims=")
    return boxes, boxes.shape[boxes.ndim - 1]


cpdef bint is_plain(object given) except -1:
    """Whether it is a numpy array of numbers, or a list or tuple that begins like one, with no more to find out."""
    if type(given) is ndarray:
        return given.dtype.kind in "fiu"
    if type(given) is not list and type(given) is not tuple:
        return False
    if not given:
        return True
    first = given[0]
    return PyFloat_Check(first) or type(first) in (int, list, tuple, ndarray)


cdef bint read_plain_box(object given, int dims, double *box) except -1:
    cdef Py_ssize_t n = read_plain_row(given, dims, box)
    if n == dims:
        memcpy(box + dims, box, dims * sizeof(double))
    return n > 0 and first_invalid(box, 1, dims, False) < 0


cdef bint read_plain_point(object given, int dims, double *row) except -1:
    cdef Py_ssize_t axis
    if read_plain_row(given, dims, row) != dims:
        return False
    for axis in range(dims):
        if not isfinite(row[axis]):
            return False
    return True


cdef Py_ssize_t read_plain_row(object given, int dims, double *row) except -1:
    """Copies the numbers of a box or a point; returns how many, 0 for what needs a conversion."""
    cdef Py_ssize_t i, n
    if type(given) is tuple:
        n = len(<tuple>given)
        if n != 2 * dims and n != dims:
            return 0
        for i in range(n):
            if not read_plain_number((<tuple>given)[i], row + i):
                return 0
        return n
    if type(given) is list:
        n = len(<list>given)
        if n != 2 * dims and n != dims:
            return 0
        for i in range(n):
            if not read_plain_number((<list>given)[i], row + i):
                return 0
        return n
    return read_plain_array(given, dims, row) if type(given) is ndarray else 0


cdef Py_ssize_t read_plain_array(object array, int dims, double *row) except -1:
    """Copies a 1-D float64 array of a fitting length; returns the length, 0 for any other array."""
    cdef Py_buffer view
    cdef Py_ssize_t i, n = 0
    if array.dtype is not FLOAT64:
        return 0
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    if view.ndim == 1 and view.shape[0] in (dims, 2 * dims):
        n = view.shape[0]
        for i in range(n):
            memcpy(row + i, <const char *>view.buf + i * view.strides[0], sizeof(double))
    PyBuffer_Release(&view)
    return n


cdef object boxes_of(object given, int dims, bint stored):
    """Boxes of rank 1 or 2, valid; points are widened to boxes."""
    cdef Py_buffer view
    cdef Py_ssize_t rows, width
    cdef int rank
    if not is_plain(given):
        given = rows_to_store(given, dims) if stored else rows_to_ask(given, dims)
    boxes = numbers_of(given)
    PyObject_GetBuffer(boxes, &view, PyBUF_STRIDES)
    try:
        rank = view.ndim
        width = view.shape[rank - 1] if rank > 0 else -1
        rows = view.shape[0] if rank == 2 else 1
        if rank == 1 and width == 0:
            return empty((0, 2 * dims))
        if rank not in (1, 2) or width not in (dims, 2 * dims):
            raise DimensionError(
                f"got an array of shape {boxes.shape}, expected ({2 * dims},) for one box or (n, {2 * dims}) for many; "
                f"as points ({dims},) or (n, {dims})")
        if width == dims:
            boxes = widened(<const double *>view.buf, rows, dims, rank == 1)
    finally:
        PyBuffer_Release(&view)
    PyObject_GetBuffer(boxes, &view, PyBUF_STRIDES)
    try:
        require_valid(<const double *>view.buf, rows, dims, stored, rank == 1)
    finally:
        PyBuffer_Release(&view)
    return boxes


cdef object widened(const double *points, Py_ssize_t rows, int dims, bint one):
    """Points as boxes without extent."""
    cdef Py_buffer view
    cdef double *box
    boxes = empty(2 * dims) if one else empty((rows, 2 * dims))
    PyObject_GetBuffer(boxes, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
    box = <double *>view.buf
    for _ in range(rows):
        memcpy(box, points, dims * sizeof(double))
        memcpy(box + dims, points, dims * sizeof(double))
        points += dims
        box += 2 * dims
    PyBuffer_Release(&view)
    return boxes


cdef int require_valid(const double *boxes, Py_ssize_t rows, int dims, bint stored, bint one) except -1:
    """Raises InvalidBoxError for the first box that isn't valid."""
    cdef Py_ssize_t row, count, start = 0
    cdef int axis
    cdef double least, most
    cdef Breath breath
    if rows < 256:
        row = first_invalid(boxes, rows, dims, stored)
    else:
        row = -1
        first_breath(&breath, None)
        with nogil:
            while row < 0 and start < rows:
                count = min(rows - start, <Py_ssize_t>JUDGED_AT_ONCE)
                row = first_invalid(boxes + start * 2 * dims, count, dims, stored)
                row += start if row >= 0 else 0
                start += count
                spend(&breath, count * dims)
    if row < 0:
        return 0
    for axis in range(dims):
        least = boxes[row * 2 * dims + axis]
        most = boxes[row * 2 * dims + dims + axis]
        where = f"axis {axis}" if one else f"row {row}, axis {axis}"
        if isnan(least) or isnan(most):
            raise InvalidBoxError(f"invalid box: {where} has NaN (min {least}, max {most})")
        if least > most:
            raise InvalidBoxError(f"invalid box: {where} has min {least} above max {most}")
        if stored and not (isfinite(least) and isfinite(most)):
            raise InvalidBoxError(f"invalid box: {where} is infinite (min {least}, max {most}); "
                                  "only queries may have infinite bounds")
    return 0


cdef Py_ssize_t first_invalid(const double *boxes, Py_ssize_t rows, int dims, bint stored) noexcept nogil:
    """The first row with NaN, with min > max, or, if stored, with an infinite bound; -1 when all are fine."""
    cdef Py_ssize_t row
    cdef int axis
    cdef bint fine
    cdef double least, most
    for row in range(rows):
        fine = True
        for axis in range(dims):
            least = boxes[axis]
            most = boxes[dims + axis]
            fine &= least <= most
            if stored:
                fine &= (least > -INFINITY) & (most < INFINITY)
        if not fine:
            return row
        boxes += 2 * dims
    return -1


# Ids.

cdef int64_t read_id(object given) except? -1:
    return whole_number(given, -1)


def one_id(given):
    """One id as (1,) int64. Raises TypeError, OverflowError."""
    cdef int64_t value = whole_number(given, -1)
    cdef Py_buffer view
    out = empty(1, INT64)
    PyObject_GetBuffer(out, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
    (<int64_t *>view.buf)[0] = value
    PyBuffer_Release(&view)
    return out


def many_ids(given):
    """Ids as (n,) int64. Raises TypeError, OverflowError, DimensionError, ValueError for a masked one."""
    cdef Py_buffer view
    cdef Py_ssize_t i
    cdef tuple items
    if isinstance(given, (list, tuple)):
        items = tuple(given)
        out = empty(len(items), INT64)
        PyObject_GetBuffer(out, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
        try:
            for i in range(len(items)):
                (<int64_t *>view.buf)[i] = whole_number(items[i], i)
                if i % READ_AT_ONCE == 0:
                    PyErr_CheckSignals()
        finally:
            PyBuffer_Release(&view)
        return out
    array = array_of(given if type(given) is ndarray else ids_given(given), ValueError)
    kind = array.dtype.kind
    if kind not in "iu" and not (kind == "f" and array.shape == (0,)):
        raise TypeError(f"ids must be integers, got {called(array, given)}")
    if array.ndim != 1:
        raise DimensionError(f"got ids of shape {array.shape}, expected (n,)")
    if kind == "u" and array.dtype.itemsize == 8 and array.size and int(array.max()) > INT64_MAX:
        raise OverflowError(f"id {int(array.max())} at index {int(array.argmax())} is outside int64")
    return plain(array, INT64)


cdef int64_t whole_number(object given, Py_ssize_t index) except? -1:
    """An integer that int64 holds; a bool isn't one. A negative index stands for a single id."""
    cdef int overflow = 0
    cdef int64_t value
    if not PyLong_CheckExact(given):
        if isinstance(given, (bool, np.bool_)) or not hasattr(given, "__index__"):
            raise TypeError(f"ids must be integers, got a {type(given).__name__}{place_of(index)}")
        try:
            given = operator.index(given)
        except TypeError:           # of an array with more than one value, or with other values
            raise TypeError(f"ids must be integers, got a {type(given).__name__}{place_of(index)}") from None
    value = PyLong_AsLongLongAndOverflow(given, &overflow)
    if overflow:
        raise OverflowError(f"id {shown(given)}{place_of(index)} is outside int64 ({INT64_MIN} .. {INT64_MAX})")
    return value


cdef str place_of(Py_ssize_t index):
    return "" if index < 0 else f" at index {index}"
