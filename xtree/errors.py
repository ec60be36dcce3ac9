"""The errors of xtree, by cause. Each derives from XTreeError, and from a builtin error where one fits.

Errors of the operating system stay OSError, with their errno.
"""

__all__ = [
    "CapacityError",
    "ClosedError",
    "CorruptionError",
    "DimensionError",
    "FormatVersionError",
    "InvalidBoxError",
    "LockedError",
    "ReadOnlyError",
    "StoreFailedError",
    "TransactionError",
    "XTreeError",
]


class XTreeError(Exception):
    """Raised when xtree refuses or fails to do something; the base of all errors below."""


# Bad input: nothing was changed.


class InvalidBoxError(XTreeError, ValueError):
    """Raised when a box holds NaN, a minimum above its maximum, or a coordinate that can't be stored exactly."""


class DimensionError(XTreeError, ValueError):
    """Raised when an array has another shape, or a tree another number of dimensions, than asked for."""


# Handles: what is asked of them isn't possible (any more).


class LockedError(XTreeError, OSError):
    """Raised when another process has the index open to write, or to read while this one wants to write."""


class ReadOnlyError(XTreeError, RuntimeError):
    """Raised when a write is asked of an index that was opened with mode="r"."""


class ClosedError(XTreeError, RuntimeError):
    """Raised when a closed tree, runtime or snapshot is used, or a durable tree's snapshot in a forked child."""


class TransactionError(XTreeError, RuntimeError):
    """Raised when a transaction is used after its end, from two threads at once, or inside another one.

    Also raised when a finalizer, a signal handler or a callback makes a call in the middle of an operation of the
    index, and the thread would wait for itself.
    """


# The store: what is on disk, or can't get there.


class StoreFailedError(XTreeError, RuntimeError):
    """Raised when a write is asked of a store that an earlier I/O error has poisoned, or whose directory was moved,
    removed or replaced; reopening clears it."""


class CorruptionError(XTreeError, ValueError):
    """Raised when bytes of an index are not what was written; says file, offset, expected and found."""


class FormatVersionError(XTreeError, ValueError):
    """Raised when a file has a format version that this xtree doesn't read; says both versions."""


class CapacityError(XTreeError, MemoryError):
    """Raised when handles, windows or address space are exhausted."""
