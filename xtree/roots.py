"""Roots: the entries of trees and other structures in the catalog, and the decoded states that go with them."""

from __future__ import annotations

from typing import Any

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.catalog import CatalogEntry

__all__ = ["KIND", "entry_of", "is_known", "register_state", "decode_state", "tree_state_of"]

KIND = "xtree"  # of a tree's catalog entry; reaches disk, never change

_states: dict[str, Any] = {KIND: TreeState}


def register_state(kind: str, state: Any) -> None:
    """Says which class decodes the states of a kind; a class that is defined again replaces its earlier self.

    Raises ValueError for an invalid kind.
    """
    if kind == KIND:
        raise ValueError(f"the kind {KIND!r} is that of trees")
    CatalogEntry("any", kind, 0, b"")
    _states[kind] = state


def is_known(kind: str) -> bool:
    """Whether something has registered a kind, so that states of it can be decoded."""
    return kind in _states


def decode_state(entry: CatalogEntry) -> Any:
    """The state of a tree or structure, decoded once per entry; shared, so copy it before changing it.

    Raises CorruptionError, ValueError for a kind that nothing has registered.
    """
    known = _states.get(entry.kind)
    if known is None:
        raise ValueError(f"{entry.name!r} is of the kind {entry.kind!r}: import the module that defines it first")
    state = entry.decoded
    if not isinstance(state, known):
        entry.decoded = state = known.decode(entry.state, entry.root)
    return state


def tree_state_of(entry: CatalogEntry) -> TreeState:
    """The state of a tree. Raises CorruptionError, ValueError for a structure that is no tree."""
    if entry.kind != KIND:
        raise ValueError(f"{entry.name!r} is no tree, but a structure of the kind {entry.kind!r}")
    state: TreeState = decode_state(entry)
    return state


def entry_of(name: str, state: Any) -> CatalogEntry:
    """The entry that publishes a state; after that the state never changes again."""
    kind = KIND if isinstance(state, TreeState) else state.kind
    return CatalogEntry(name, kind, state.root, state.encode(), state)
