"""Forest: the trees and other structures of one store, their writer locks, and how they are made and dropped."""

from __future__ import annotations

from typing import Any

from xtree.algorithms.parameters import TreeParameters
from xtree.algorithms.tree_state import TreeState
from xtree.algorithms.updates import bulk
from xtree.arguments import as_dims, as_name
from xtree.config import Config
from xtree.errors import ClosedError, DimensionError, TransactionError
from xtree.persistence.session import Session
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.write_set import WriteSet
from xtree.roots import KIND, decode_state, tree_state_of
from xtree.structure import Structure
from xtree.write_scope import WriteScope
from xtree.writer_lock import WriterLock, WriterLocks

__all__ = ["Forest"]


class Forest:
    """The trees of a session's store, and the structures that are no trees. Thread-safe.

    It takes no lock but writer locks; their table changes in single steps. A tree is made and dropped by ordinary
    commits, which hold the writer lock of its name until their outcome is known.
    """

    def __init__(self, session: Session, config: Config | None = None) -> None:
        self.session = session
        self._config = config  # for new trees; None: that of the store
        self._own_locks = WriterLocks()  # in memory

    @property
    def _locks(self) -> WriterLocks:
        share = self.session.share
        return self._own_locks if share is None else share.locks_made_by(WriterLocks)

    def names(self) -> list[str]:
        """The names of all trees, sorted. Raises ClosedError."""
        with self.session.read() as (_, published):
            return sorted(entry.name for entry in published.catalog if entry.kind == KIND)

    def structures(self) -> dict[str, str]:
        """The kind of each structure that is no tree, by name, sorted. Raises ClosedError."""
        with self.session.read() as (_, published):
            return dict(sorted((entry.name, entry.kind) for entry in published.catalog if entry.kind != KIND))

    def lock_of(self, name: str) -> WriterLock:
        """The writer lock of a tree or structure that exists. Raises KeyError, ClosedError."""
        name = as_name(name)
        lock = self._find(name)
        if lock is None:
            raise KeyError(name)
        return lock

    def is_tree(self, name: str) -> bool:
        """Whether a name is that of a tree. Raises KeyError when nothing has the name, ClosedError."""
        entry = self._entry(as_name(name))
        if entry is None:
            raise KeyError(name)
        return bool(entry.kind == KIND)

    def find_or_make(self, name: str, dims: int | None) -> WriterLock:
        """The writer lock of a tree; a missing tree is made when dims is given.

        Raises ValueError when the tree is missing and dims is None, DimensionError when it has other dims,
        ReadOnlyError, ClosedError.
        """
        name = as_name(name)
        wanted = None if dims is None else as_dims(dims)
        while True:  # once more when another thread drops what this one has made
            entry = self._entry(name)
            if entry is not None and wanted is not None and tree_state_of(entry).dims != wanted:
                raise DimensionError(f"tree {name!r} has {tree_state_of(entry).dims} dims, not {wanted}")
            lock = self._find(name, KIND)
            if lock is not None:
                return lock
            if wanted is None:
                raise ValueError(self._missing(name))
            self._make(name, self._new_tree(wanted))

    def find_or_make_structure(self, name: str, wanted: type[Structure]) -> WriterLock:
        """The writer lock of a structure; a missing one is made, empty.

        Raises ValueError when the name belongs to something of another kind, ReadOnlyError, ClosedError.
        """
        name = as_name(name)
        while True:
            lock = self._find(name, wanted.kind)
            if lock is not None:
                return lock
            self._make(name, wanted())

    def make_in(self, scope: WriteScope, name: str, dims: int) -> None:
        """Makes a tree as part of a transaction that has begun.

        Raises ValueError when the name is taken, TransactionError when another thread is writing to what has the name.
        """
        state = self._new_tree(as_dims(dims))
        while True:
            lock = self._locks.of(name)
            try:
                return scope._make(lock, state)
            except ClosedError:
                if not lock.dropped:
                    raise

    def drop(self, name: str) -> None:
        """Removes a tree or structure and retires its pages, in one commit.

        Raises KeyError, ValueError for a kind that nobody has registered, ReadOnlyError, TransactionError.
        """
        while True:
            lock = self.lock_of(name)
            try:
                with WriteScope(self.session, (lock,)) as scope:
                    scope._write_tree(lock.name, _clear)
                    scope._drop(lock.name)
                return
            except ClosedError:
                if not lock.dropped:  # else another thread has dropped it, and there may be a new one
                    raise

    def _new_tree(self, dims: int) -> TreeState:
        self.session.require_writable()
        chosen = self._config or getattr(self.session.current(), "config", None)
        parameters = chosen if isinstance(chosen, TreeParameters) else TreeParameters()
        return TreeState.create(
            dims,
            page_bytes=parameters.page_bytes,
            max_overlap=parameters.max_overlap,
            min_fanout=parameters.min_fanout,
            min_fill=parameters.min_fill,
            leaf_fill=parameters.leaf_fill,
        )

    def _missing(self, name: str) -> str:
        names = self.names()
        others = f", only {', '.join(map(repr, names[:10]))}{', …' if len(names) > 10 else ''}" if names else ""
        return f"there is no tree {name!r}{others}" + ("" if self.session.read_only else "; give dims= to make it")

    def _make(self, name: str, state: Any) -> None:
        """Makes a tree or structure, unless another thread has made one with this name meanwhile."""
        lock = self._locks.of(name)
        try:
            with WriteScope(self.session, (lock,), made={name: state}):
                pass
        except ClosedError:
            if not lock.dropped:  # else another thread has dropped it, or couldn't make it
                raise

    def _entry(self, name: str) -> CatalogEntry | None:
        with self.session.read() as (_, published):
            entry: CatalogEntry | None = published.catalog.get(name)
            return entry

    def _find(self, name: str, kind: str | None = None) -> WriterLock | None:
        """The writer lock of a tree or structure; None when nothing has the name.

        Raises ValueError when it isn't of the given kind, TransactionError while this thread is making it.
        """
        entry = self._entry(name)
        if entry is None:
            if self._locks.held_here(name):
                raise TransactionError(f"{name!r} is being made by a transaction of this thread: use its methods")
            return None
        if kind is not None and entry.kind != kind:
            if kind == KIND:
                tree_state_of(entry)
            raise ValueError(f"{name!r} is of the kind {entry.kind!r}, not {kind!r}")
        decode_state(entry)
        return self._locks.of(name)


def _clear(write_set: WriteSet, state: Any) -> None:
    """Removes every page of a tree or structure."""
    if isinstance(state, TreeState):
        bulk.clear(write_set, state)
    else:
        for node in list(state.pages(write_set.store)):
            write_set.remove_page(node)
