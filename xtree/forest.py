"""Forest: the trees and other structures of one store: their writer locks, how they are made and dropped."""

from __future__ import annotations

import threading
from typing import Any

from xtree import bulk
from xtree.arguments import as_config, as_dims, as_name
from xtree.errors import DimensionError
from xtree.persistence.catalog import CatalogEntry
from xtree.persistence.config import Config
from xtree.persistence.store import Store
from xtree.persistence.write_set import WriteSet
from xtree.roots import KIND, entry_of, state_of, tree_state_of
from xtree.structure import Structure
from xtree.tree_state import TreeState
from xtree.write_scope import WriterLock, WriteScope

__all__ = ["Forest"]


class Forest:
    """The trees of a store, and the structures that are none. Thread-safe.

    Lock order: a tree's writer lock, then `_guard`, which protects the table of writer locks and the making and
    dropping of both.
    """

    def __init__(self, store: Store, config: Config | None) -> None:
        self.store = store
        self._parameters: dict[str, Any] = dict(as_config(config).tree_parameters())
        self._guard = threading.Lock()
        self._locks: dict[str, WriterLock] = {}
        self._holding: dict[int, int] = {}

    def names(self) -> list[str]:
        """The names of all trees, sorted. Raises ClosedError."""
        with self.store.read() as published:
            return sorted(entry.name for entry in published.catalog if entry.kind == KIND)

    def structures(self) -> dict[str, str]:
        """The kind of each structure that is no tree, by name, sorted. Raises ClosedError."""
        with self.store.read() as published:
            return dict(sorted((entry.name, entry.kind) for entry in published.catalog if entry.kind != KIND))

    def lock_of(self, name: str) -> WriterLock:
        """The writer lock of a tree or structure that exists. Raises KeyError, ClosedError."""
        self._require_open()
        with self._guard:
            return self._lock_of(as_name(name))

    def is_tree(self, name: str) -> bool:
        """Whether a name is that of a tree. Raises KeyError when there is nothing of the name, ClosedError."""
        entry = self._entry(as_name(name))
        if entry is None:
            raise KeyError(name)
        return bool(entry.kind == KIND)

    def find_or_make(self, name: str, dims: int | None) -> WriterLock:
        """The writer lock of a tree, which is made when it is missing and dims are given.

        Raises ValueError when it is missing and they aren't, DimensionError when it has others, ReadOnlyError,
        ClosedError.
        """
        name = as_name(name)
        wanted = None if dims is None else as_dims(dims)
        self._require_open()
        while True:  # once more when another thread drops what this one has made
            with self._guard:
                entry = self._entry(name)
                if entry is not None:
                    if tree_state_of(entry).dims != wanted and wanted is not None:
                        raise DimensionError(f"tree {name!r} has {tree_state_of(entry).dims} dims, not {wanted}")
                    return self._lock_of(name)
            if wanted is None:
                raise ValueError(self._missing(name))
            self._make(name, TreeState.create(wanted, **self._parameters))

    def find_or_make_structure(self, name: str, wanted: type[Structure]) -> WriterLock:
        """The writer lock of a structure, which is made, empty, when it is missing.

        Raises ValueError when there is something of another kind, ReadOnlyError, ClosedError.
        """
        name = as_name(name)
        self._require_open()
        while True:
            with self._guard:
                entry = self._entry(name)
                if entry is not None:
                    if entry.kind != wanted.kind:
                        raise ValueError(f"{name!r} is of the kind {entry.kind!r}, not {wanted.kind!r}")
                    return self._lock_of(name)
            self._make(name, wanted())

    def drop(self, name: str) -> None:
        """Removes a tree or structure and retires its pages, in one commit.

        Raises KeyError, ValueError for a kind that nobody has registered, ReadOnlyError, TransactionError.
        """
        lock = self.lock_of(name)
        with WriteScope(self.store, (lock,)) as scope, self._guard:
            scope._write_tree(lock.name, _clear)
            scope._set_entry(lock.name, None)
            scope.commit()
            self._forget(lock.name)

    def _missing(self, name: str) -> str:
        names = self.names()
        others = f", only {', '.join(map(repr, names[:10]))}{', …' if len(names) > 10 else ''}" if names else ""
        return f"there is no tree {name!r}{others}" + ("" if self.store.read_only else "; give dims= to make it")

    def _make(self, name: str, state: Any) -> None:
        """Makes a tree or structure, unless another thread has made one of the name meanwhile."""
        with WriteScope(self.store, ()) as scope, self._guard:  # who waits for room in the log doesn't hold the guard
            if self._entry(name) is None:
                self._forget(name)
                scope._set_entry(name, entry_of(name, state))
                scope.commit()

    def _entry(self, name: str) -> CatalogEntry | None:
        with self.store.read() as published:
            entry: CatalogEntry | None = published.catalog.get(name)
            return entry

    def _lock_of(self, name: str) -> WriterLock:
        entry = self._entry(name)
        if entry is None:
            self._forget(name)
            raise KeyError(name)
        state_of(entry)
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = WriterLock(name, self._holding)
        return lock

    def _forget(self, name: str) -> None:
        """Ends the handles of a tree that is gone."""
        lock = self._locks.pop(name, None)
        if lock is not None:
            lock.dropped = True

    def _require_open(self) -> None:
        """Raises ClosedError; asked before taking the guard, which another thread may have held at a fork."""
        with self.store.call():
            return


def _clear(write_set: WriteSet, state: Any) -> None:
    """Removes every page of a tree or structure."""
    if isinstance(state, TreeState):
        bulk.clear(write_set, state)
    else:
        for node in list(state.pages(write_set.store)):
            write_set.remove_page(node)
