"""xtree: a spatial index for boxes and points, in memory or crash-safe on disk.

>>> import xtree
>>> tree = xtree.XTree(dims=2)
>>> tree.insert(7, (0.0, 0.0, 2.0, 1.0))
>>> tree.query((1.0, 0.5, 3.0, 3.0)).tolist()
[7]

`xtree.open(path, dims=2)` opens such a tree in a directory that survives crashes; `xtree.Runtime(path)` holds many.
"""

import logging

from xtree.config import Config
from xtree.errors import (
    CapacityError,
    ClosedError,
    CorruptionError,
    DimensionError,
    FormatVersionError,
    InvalidBoxError,
    LockedError,
    ReadOnlyError,
    StoreFailedError,
    TransactionError,
    XTreeError,
)
from xtree.runtime import Runtime
from xtree.runtime import open as open
from xtree.snapshot import Snapshot
from xtree.structure import Structure, StructureHandle
from xtree.transaction import RuntimeTransaction, Transaction, TransactionTree
from xtree.tree import XTree

__version__ = "0.2.0"

logging.getLogger("xtree").addHandler(logging.NullHandler())  # silent unless the program configures logging

__all__ = [
    "CapacityError",
    "ClosedError",
    "Config",
    "CorruptionError",
    "DimensionError",
    "FormatVersionError",
    "InvalidBoxError",
    "LockedError",
    "ReadOnlyError",
    "Runtime",
    "RuntimeTransaction",
    "Snapshot",
    "StoreFailedError",
    "Structure",
    "StructureHandle",
    "Transaction",
    "TransactionError",
    "TransactionTree",
    "XTree",
    "XTreeError",
    "__version__",
]  # without `open`, so that `from xtree import *` leaves the built-in one alone


def __dir__() -> list[str]:
    """The public names; modules can be imported without being listed."""
    return sorted([*__all__, "open", *(name for name in globals() if name.startswith("__"))])
