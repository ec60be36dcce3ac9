"""Real numbers: what other compiled modules use of it."""

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact

cdef enum:
    READ_AT_ONCE = 4096             # numbers or rows of a sequence between two looks at signals

cdef extern from *:
    """
    #define XT_SAFE_INTEGER (1LL << 53)
    """
    const long long SAFE_INTEGER "XT_SAFE_INTEGER"      # every integer up to here is exact in float64

# The numbers of an array-like, float64 and C-contiguous.
cdef object numbers_of(object given)
# An array-like as an array. Raises `error` where a mask hides a value, since it has none there.
cdef object array_of(object given, error)
# A name, for a message, for what was given and became this array.
cdef object called(array, given)
# The array as an aligned, C-contiguous one of this dtype; itself when it is one.
cdef object plain(array, dtype)
# An integer for a message: huge ones by their size only.
cdef object shown(item)


cdef inline bint read_plain_number(object item, double *out) except -1:
    """Reads a float or a small int; False for anything else."""
    cdef int overflow = 0
    cdef long long whole
    if PyFloat_Check(item):
        out[0] = PyFloat_AS_DOUBLE(item)
        return True
    if PyLong_CheckExact(item):
        whole = PyLong_AsLongLongAndOverflow(item, &overflow)
        if overflow == 0 and -SAFE_INTEGER <= whole <= SAFE_INTEGER:
            out[0] = <double>whole
            return True
    return False
