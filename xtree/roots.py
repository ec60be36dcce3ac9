"""Roots: an X-tree's entry in the catalog, and the decoded state that goes with it."""

from __future__ import annotations

from xtree.errors import CorruptionError
from xtree.persistence.catalog import CatalogEntry
from xtree.tree_state import TreeState

__all__ = ["KIND", "entry_of", "state_of"]

KIND = "xtree"  # of catalog entries; reaches disk, never change


def state_of(entry: CatalogEntry) -> TreeState:
    """The state of a tree, decoded once per entry; shared, so copy it before changing it. Raises CorruptionError."""
    state = entry.view
    if not isinstance(state, TreeState):
        if entry.kind != KIND:
            raise CorruptionError(f"{entry.name!r} is a structure of kind {entry.kind!r}, expected {KIND!r}")
        entry.view = state = TreeState.decode(entry.state, entry.root)
    return state


def entry_of(name: str, state: TreeState) -> CatalogEntry:
    """The entry that publishes a state, which from then on never changes again."""
    return CatalogEntry(name, KIND, state.root, state.encode(), state)
