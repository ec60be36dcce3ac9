"""Sharing: the handles of one process on one directory use one store, whichever opens it first.

A notebook keeps handles that nobody sees, so that opening a directory once more must work. It is known by its lock
file, whose descriptor the store holds: a directory that was removed and made again is another one.

A store that failed, or whose directory was moved or replaced, is closed by who opens the directory once more. One for
reading only makes way for one that writes, and the handles that there are move to it.

After a fork the child has none of these stores. A handle that is used there opens the directory once more, to read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable

from xtree.errors import ClosedError, LockedError
from xtree.persistence.config import Config
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.lock_ranks import require_nothing_held
from xtree.persistence.open_directory import DirectoryLostError
from xtree.persistence.platform_fs import FileSystem
from xtree.persistence.recovery import Progress
from xtree.persistence.runtime import open_for_writing, open_store
from xtree.persistence.session import Session, SharedStore, Turn, share_of


def open_session(
    path: str,
    mode: str = "a",
    config: Config | None = None,
    durability: str | None = None,
    timeout: float | None = 0,
    progress: Progress | None = None,
    on_error: Callable[[BaseException], object] | None = None,
) -> Session:
    """A session on the store of a directory: the one that this process has open, or else opened by `open_store`.

    config, durability: None for those in force. Waits for another thread that is opening it. Raises what open_store
    does, ValueError for a config or durability other than those in force, and TransactionError where it would wait for
    itself.
    """
    require_nothing_held("opening an index")
    place = FileSystem().real_path(path)
    read_only = mode == "r"
    refusal = f"the index {place} was opened with mode='r'" if read_only else None
    session = Session(None, place, refusal, on_error, _reopen)
    with Turn(place):
        while True:
            share = _share_at(place)
            if share is None:
                _started(place, mode, _settings(config, durability), timeout, progress).join(session)
                return session
            if mode == "x":
                raise FileExistsError(errno.EEXIST, "there is an index already", place)
            if not share.store.read_only:
                _require_agreement(share.store.config, config, durability)
            if share.join(session):
                if read_only or not share.store.read_only:
                    return session
                if _made_writable(session, _settings(config, durability), timeout, progress):
                    return session


def _share_at(path: str) -> SharedStore | None:
    """What this process has open in the directory at a path, once what can't be joined is closed."""
    identity = FileSystem().lock_identity(path)
    share = share_of(identity)
    if share is None or (not share.ended and share.store.state == "open" and _is_own(share)):
        return share
    with contextlib.suppress(DirectoryLostError):
        share.close()
    if share_of(identity) is share:
        raise LockedError(errno.EWOULDBLOCK, "this process is closing the index: that ends with the calls in it", path)
    return _share_at(path)


def _is_own(share: SharedStore) -> bool:
    """Whether the directory is still where it was opened."""
    try:
        share.store.require_own()
    except DirectoryLostError:
        return False
    return True


def _started(
    path: str,
    mode: str,
    config: Config,
    timeout: float | None,
    progress: Progress | None,
) -> SharedStore:
    """The store of a directory that this process hasn't got open."""
    share = SharedStore()
    share.start(open_store(path, mode=mode, config=config, timeout=timeout, progress=progress, on_error=share.report))
    return share


def _made_writable(session: Session, config: Config, timeout: float | None, progress: Progress | None) -> bool:
    """Puts a store that writes in the place of one that reads, which a session has joined; False: it is closed."""
    share = session.share
    assert share is not None
    store = None
    try:
        store = open_for_writing(share.store, config, timeout, progress, share.report)
        if store is not None:
            share.move_to(store)
    finally:
        if store is None:
            share.leave(session)
    return store is not None


def _settings(config: Config | None, durability: str | None) -> Config:
    config = config or Config()
    return config if durability is None else dataclasses.replace(config, durability=durability)


def _require_agreement(present: Config, config: Config | None, durability: str | None) -> None:
    """Raises ValueError for settings that are given and aren't those in force, but for those that never change."""
    if config is not None:
        wanted = dataclasses.asdict(_settings(config, durability))
    else:
        wanted = {} if durability is None else {"durability": durability}
    for name, value in wanted.items():
        if name not in Config.STORED and value != getattr(present, name):
            raise ValueError(
                f"this process has the index open with {name}={getattr(present, name)!r}, not {value!r}: leave it out, "
                "or close the other handles first"
            )


def _reopen(session: Session) -> None:
    """In a forked child: opens the directory of a parent's handle to read, if it is still the same index."""
    require_nothing_held("opening an index")
    inherited, place = session.store, session.path
    assert isinstance(inherited, DurableStore) and place is not None
    with Turn(place):
        if session.store is not inherited:  # another thread has
            return
        share = _share_at(place)
        if share is None:
            try:
                share = _started(place, "r", Config(), 0, None)
            except LockedError as error:
                raise LockedError(
                    errno.EWOULDBLOCK,
                    "the index was opened before a fork, and the child process can't read it as long as another "
                    f"process writes to it: {error.strerror}",
                    place,
                ) from error
        if share.store.uuid != inherited.uuid:
            if not share.joined:
                share.close()
            raise ClosedError(f"{place}: another index was put in its place since the fork")
        session.start_in_child()
        if not share.join(session):
            raise ClosedError(f"{place}: another thread has closed it in this moment")
