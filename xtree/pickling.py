"""Pickling: what a tree takes along to another process, and what it becomes there.

A tree in memory takes its records and is packed again. A durable one takes its path and is opened to read; so does its
snapshot, which needs the very epoch that it shows.
"""

from __future__ import annotations

from typing import Any

from xtree.config import Config
from xtree.persistence.sharing import session_at
from xtree.runtime import Runtime
from xtree.snapshot import Snapshot
from xtree.tree import XTree
from xtree.writer_lock import WriterLocks
from xtree.writing import Floats, Ids

__all__ = ["Place", "runtime_at", "snapshot_at", "tree_at", "tree_of"]

Place = tuple[str, bytes, int]  # absolute path, UUID, epoch


def tree_of(kind: type[XTree], dims: int, parameters: dict[str, Any], ids: Ids, boxes: Floats) -> XTree:
    """A tree in memory of these records. kind: XTree or a subclass."""
    tree = kind.__new__(kind)
    XTree.__init__(tree, dims, Config(**parameters))
    if len(ids):
        tree.bulk_load(ids, boxes)
    return tree


def runtime_at(place: Place) -> Runtime:
    """A read-only Runtime in place of the pickled one, opened at its first use.

    It isn't opened earlier: a pool of processes loses what can't be unpickled, and then waits for ever.
    """
    return Runtime._arriving(session_at(*place))


def tree_at(place: Place, name: str, dims: int, owner: bool) -> XTree:
    """A read-only tree in place of the pickled one, opened at its first use. owner: closing it closes its index."""
    runtime = runtime_at(place)
    tree = XTree.__new__(XTree)
    tree._attach(runtime._session, WriterLocks().of(name), runtime, owner, dims)
    return tree


def snapshot_at(place: Place, name: str, dims: int, owner: bool) -> Snapshot:
    """A snapshot in place of the pickled one. Its first use takes it, and raises ValueError for a later epoch."""
    return Snapshot._arriving(tree_at(place, name, dims, owner), place[2])
