"""Pickling: what a tree takes along to another process, and what it is there.

One in memory takes its records and is packed again. A durable one takes its path, and is opened to read; so is a
snapshot, which needs the very epoch that it shows.
"""

from __future__ import annotations

import errno
from typing import Any

from xtree.errors import LockedError
from xtree.persistence.config import Config
from xtree.runtime import Runtime
from xtree.snapshot import Snapshot
from xtree.tree import XTree
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
    """A read-only Runtime where another one was.

    Raises FileNotFoundError, LockedError while another process writes to it, ValueError for another index or an older
    state of it.
    """
    path, uuid, epoch = place
    try:
        runtime = Runtime(path, mode="r")
    except LockedError as error:
        raise LockedError(
            errno.EWOULDBLOCK,
            "a pickled index is opened to read where it arrives, which takes that no other process writes to it: "
            f"{error.strerror}",
            path,
        ) from error
    found = runtime._place()
    if found[1] == uuid and found[2] >= epoch:
        return runtime
    runtime.close()
    if found[1] != uuid:
        raise ValueError(f"{path}: expected the index that was pickled, found another one in its place")
    raise ValueError(f"{path}: expected epoch {epoch} or a later one, found {found[2]}: an older copy of the index?")


def tree_at(place: Place, name: str, dims: int, owner: bool) -> XTree:
    """A read-only tree where another one was. owner: closing it closes its index.

    Raises what runtime_at does, DimensionError when the tree was made anew with others.
    """
    runtime = runtime_at(place)
    try:
        return runtime._handle(runtime._forest.find_or_make(name, dims), owner)
    except BaseException:
        runtime.close()
        raise


def snapshot_at(place: Place, name: str, dims: int, owner: bool) -> Snapshot:
    """A snapshot where another one was. Raises what runtime_at does, ValueError for a later epoch."""
    tree = tree_at(place, name, dims, owner)
    snapshot = tree.snapshot()
    path, _, wanted = place
    epoch = snapshot.epoch
    if epoch == wanted:
        return snapshot
    tree.close()
    raise ValueError(f"{path}: the snapshot was of epoch {wanted}, which is gone: the index is at {epoch}")
