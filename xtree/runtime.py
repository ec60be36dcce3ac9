"""Runtime: one durable directory and the named trees in it; and `open`, for a directory that holds one tree."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, cast

from xtree.arguments import AnyPath, as_config, as_dims, as_name, as_path, as_timeout
from xtree.config import Config
from xtree.display import as_html
from xtree.epoch_check import check_all
from xtree.errors import ClosedError
from xtree.forest import Forest
from xtree.persistence.backup import write_backup
from xtree.persistence.base.progress import Progress
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.opening import exists, require_mode
from xtree.persistence.session import Session
from xtree.persistence.sharing import new_session, open_session
from xtree.roots import decode_state
from xtree.structure import Structure, StructureHandle
from xtree.transaction import RuntimeTransaction
from xtree.tree import DEFAULT_NAME, XTree
from xtree.write_scope import WriteScope
from xtree.writer_lock import WriterLock

__all__ = ["Runtime", "open"]


class Runtime:
    """One durable directory with any number of named trees, which can change together in one commit.

    A directory that a process opens more than once has several handles on one store; the last handle to close closes
    the store. In a forked child a handle opens the directory anew, to read; a pickled one does so where it arrives.

    path: the directory. mode: "r" read-only, "r+" must exist, "a" made if missing, "x" must not exist. durability: what
    a commit survives once it has returned: with "balanced" (the default) and "strict" the process's death and a power
    loss, with "eventual" the process's death; each open may choose another. config: an `xtree.Config`. While the
    process has another handle open, durability and config must be None or what that handle has. timeout: seconds to
    wait for another process's lock.

    progress: called as progress(bytes read, bytes to read) while the state is read, which takes time after a crash; an
    exception that it raises ends the open, and nothing is lost. on_error: called with the exception, from a thread in
    the background, when a checkpoint fails there; nothing that was committed is lost then, and the checkpoint is tried
    again. on_error may read and close the index; writes raise TransactionError in it.

    Raises FileNotFoundError, FileExistsError, LockedError while another process has it open, CorruptionError,
    FormatVersionError, OSError, ValueError for an unknown mode or durability, or one that differs from that in force.

    Any thread may use it, in finalizers and signal handlers too; a call there that would wait for its own thread raises
    TransactionError. As a context manager it closes at the end.
    """

    def __init__(
        self,
        path: AnyPath,
        mode: str = "a",
        durability: str | None = None,
        config: Config | None = None,
        timeout: float | None = 0,
        progress: Progress | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        _require_settings(config, durability)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable or None, not {progress!r}")
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be callable or None, not {on_error!r}")
        self._session: Session = new_session(as_path(path), require_mode(mode), on_error)
        self._finalizer = weakref.finalize(self, Session.let_go, self._session)  # before there is anything to let go
        try:
            open_session(self._session, mode, config, durability, as_timeout(timeout), progress, Config())
        except BaseException:
            self._session.close()
            raise
        self._forest = Forest(self._session)

    @property
    def path(self) -> str:
        """The real path of the directory, with links followed as they were at the open."""
        return str(self._session.path)

    @property
    def closed(self) -> bool:
        """Whether it can't be used any more."""
        return self._session.is_closed

    @property
    def _store(self) -> DurableStore:
        return cast(DurableStore, self._session.current())

    def trees(self) -> list[str]:
        """The names of the trees, sorted. Raises ClosedError."""
        return self._forest.names()

    def tree(self, name: str, dims: int | None = None) -> XTree:
        """The tree of a name, the same object each time; made with `dims` dimensions when it is missing.

        Raises ValueError when it is missing and dims isn't given, DimensionError when it has other dims, ReadOnlyError,
        ClosedError, TransactionError inside a transaction of this thread that makes the tree, or in a finalizer or
        signal handler that can't wait, and what a commit raises.
        """
        while True:
            lock = self._forest.find_or_make(name, dims)
            try:
                tree = self._handle(lock, False)
            except ClosedError:
                if self.closed:
                    raise
            else:
                if dims is None or tree._dims == dims:
                    return tree
            # Another thread has dropped it meanwhile, or made one with other dims in its place.

    def drop(self, name: str) -> None:
        """Removes a tree with its records, in one commit; its handles then raise ClosedError, its snapshots go on.

        Also removes a structure that is no tree. Waits for a transaction of another thread. Raises KeyError when
        nothing has the name, ValueError for a structure of a kind that nothing defines, TransactionError inside a
        transaction on it, ReadOnlyError, ClosedError, and what a commit raises.
        """
        self._forest.drop(as_name(name))

    def structures(self) -> dict[str, str]:
        """The kinds of the structures that are no trees, by name, sorted. Raises ClosedError."""
        return self._forest.structures()

    def structure(self, name: str, kind: type[Structure]) -> StructureHandle:
        """A structure that is no tree, made empty when it is missing. kind: its subclass of `xtree.Structure`.

        Raises ValueError when the name belongs to something of another kind, ReadOnlyError, ClosedError, and what a
        commit raises.
        """
        if not (isinstance(kind, type) and issubclass(kind, Structure)):
            raise TypeError(f"kind must be a subclass of xtree.Structure, not {kind!r}")
        lock = self._forest.find_or_make_structure(name, kind)
        return StructureHandle(lock.name, partial(self._read_structure, lock), partial(self._write_structure, lock))

    def transaction(self, trees: Iterable[str] = (), timeout: float | None = None) -> RuntimeTransaction:
        """A transaction over several trees, to be used in a with statement: one commit for all of them.

        trees: the names of the trees and other structures that it will touch; it takes their writer locks in the order
        of the names. timeout: seconds to wait for all of these locks and for room in a log that has outrun checkpoints;
        after that the with statement raises TimeoutError. With None it waits for ever for locks, and for room
        `Config.backpressure_timeout_s`. Raises KeyError for a name that is missing.
        """
        if isinstance(trees, str):
            raise TypeError("trees must be a list of names, not a str")
        return RuntimeTransaction(self, [as_name(name) for name in trees], as_timeout(timeout))

    def stats(self) -> dict[str, Any]:
        """Figures of the store, a nested dict with stable keys: commits, syncs, checkpoints, recovery, space, pins.

        docs/metrics.md explains each; xtree.prometheus.Collector hands them to Prometheus. Raises ClosedError.
        """
        with self._session.call() as store:
            stats: dict[str, Any] = store.stats()
            return stats

    def checkpoint(self) -> None:
        """Writes a checkpoint, from which the next open starts.

        Raises ReadOnlyError, ClosedError, OSError; TransactionError in a finalizer or signal handler that can't wait.
        """
        self._session.require_writable()
        self._store.checkpoint()

    def backup(self, path: AnyPath, progress: Progress | None = None) -> None:
        """Copies the current state into a new directory, an index of its own, while reading and writing go on.

        path: missing, or an empty directory. progress: called with (bytes copied, bytes in all) now and then; an
        exception that it raises ends the backup. When this returns, the copy is on the disk: a cleanly closed index
        with the same trees. Until then pages that writers replace aren't reused. Also works with mode="r", and when the
        store has failed.

        Raises FileExistsError, ValueError for a path inside the index, CorruptionError for a damaged page, OSError (a
        full disk), ClosedError also when the runtime is closed meanwhile: what was copied is removed then.
        """
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable, not {type(progress).__name__}")
        target = as_path(path)
        pin = self._session.pin()  # the store stays while it is held
        try:
            write_backup(cast(DurableStore, pin.store), target, progress)
        finally:
            pin.release()

    def check(self) -> None:
        """Verifies the store, its files and every tree that exists when the check begins.

        Every page must be in one tree or structure. Reads every page and every log. When there is a structure of a kind
        that nothing defines, a page that is in none is found only if it is a tree's.

        Superblock, manifest, checkpoints and logs are read from the disk once more, also those that the open didn't
        need. Others may write, make and drop trees meanwhile. Raises CorruptionError at the first flaw, OSError.
        """
        check_all(self._session)

    def close(self) -> None:
        """Closes the directory: open transactions are aborted, running queries finish, later use raises ClosedError.

        Idempotent. Raises OSError when the last checkpoint can't be written, StoreFailedError when its directory turns
        out to be moved or replaced; the index is closed all the same, and nothing committed is lost.
        """
        try:
            self._session.close()
        finally:
            if self.closed:  # also when it failed: the finalizer would keep the store for ever
                self._finalizer.detach()

    def __enter__(self) -> Runtime:
        with self._session.call():
            return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"Runtime({self.path!r}, closed=True)"
        mode = ", mode='r'" if self._session.read_only else ""
        trees = "" if self._session.is_away else f", trees={len(self._session.store.published.catalog)}"
        return f"Runtime({self.path!r}{mode}{trees})"

    def _repr_html_(self) -> str:
        summary: dict[str, Any] = {"path": self.path}
        store = self._session.store
        if self.closed:
            summary["closed"] = True
        elif self._session.is_away or not isinstance(store, DurableStore):
            summary["mode"] = "r"
        else:
            names = sorted(entry.name for entry in store.published.catalog)
            shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            summary |= {"holds": f"{len(names):,}: {shown}" if names else None, "epoch": store.published.epoch}
            summary["mode"] = "r" if self._session.read_only else store.config.durability
        return as_html(summary, "Runtime")

    def __reduce__(self) -> tuple[Any, ...]:
        from xtree.pickling import runtime_at  # here, since pickling imports this module

        return runtime_at, (self._place(),)

    @classmethod
    def _arriving(cls, session: Session) -> Runtime:
        """A runtime that came in a pickle; it is opened when it is used."""
        runtime = cls.__new__(cls)
        runtime._session = session
        runtime._finalizer = weakref.finalize(runtime, Session.let_go, session)
        runtime._forest = Forest(session)
        return runtime

    def _place(self) -> tuple[str, bytes, int]:
        """What a pickled handle takes along: path, UUID and epoch. Raises ClosedError."""
        with self._session.read() as (store, published):
            return self.path, cast(DurableStore, store).uuid, published.epoch

    def _read_structure(self, lock: WriterLock, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._session.read() as (store, published):
            entry = published.catalog.get(lock.name)
            if lock.dropped or entry is None:
                raise ClosedError(f"structure {lock.name!r} was dropped")
            return function(store, decode_state(entry), *arguments)

    def _write_structure(self, lock: WriterLock, function: Callable[..., Any], *arguments: Any) -> Any:
        with WriteScope(self._session, (lock,)) as scope:
            return scope._write_tree(lock.name, function, *arguments)

    def _handle(self, lock: WriterLock, owner: bool) -> XTree:
        while True:
            handle: XTree | None = lock.get_handle(self._session)  # a weak reference: a forgotten handle closes
            if handle is not None and not handle.closed:
                return handle
            made = XTree.__new__(XTree)
            made._attach(self._session, lock, self, owner)
            if lock.set_handle(made, handle) is made:
                return made


# The first finalizer registers the closing of handles at the end of the process. It is made here, so that functions
# registered with atexit after the import of this module run before that.
weakref.finalize(Runtime, int)


def open(
    path: AnyPath,
    dims: int | None = None,
    mode: str = "a",
    durability: str | None = None,
    timeout: float | None = 0,
    config: Config | None = None,
    progress: Progress | None = None,
    on_error: Callable[[BaseException], object] | None = None,
) -> XTree:
    """Opens the durable tree at `path`: the tree "default" of a Runtime of its own, `tree.runtime`.

    dims: needed to make a new index; for an existing one it must be what is stored, or None. The other arguments and
    the errors are those of Runtime. Also raises ValueError for a new path without dims, and makes nothing then, and
    DimensionError for other dims than stored.
    """
    wanted = None if dims is None else as_dims(dims)
    if wanted is None and require_mode(mode) in ("a", "x") and not exists(as_path(path)):
        raise ValueError(f"there is no index at {os.fsdecode(path)!r}; give dims= to make one")
    runtime = Runtime(path, mode, durability, config, timeout, progress, on_error)
    try:
        return runtime._handle(runtime._forest.find_or_make(DEFAULT_NAME, wanted), True)
    except BaseException:
        discard(runtime)
        raise


def store_of(runtime: Runtime) -> DurableStore:
    """The store that a runtime uses now. Raises ClosedError."""
    return runtime._store


def discard(runtime: Runtime) -> None:
    """Closes the directory after filling the index has failed, and removes the index if this open has made it."""
    try:
        runtime._session.discard()
    finally:
        if runtime.closed:
            runtime._finalizer.detach()


def make_tree(runtime: Runtime, name: str, dims: int, config: Config) -> None:
    """Makes a tree with the tree parameters of a Config, if nothing has the name yet."""
    Forest(runtime._session, config).find_or_make(name, dims)


def _require_settings(config: Config | None, durability: str | None) -> None:
    """Raises TypeError for what is no Config, ValueError for an unknown durability."""
    as_config(config)
    if durability is not None:
        Config(durability=durability)
