"""Sharing: the handles of one process on one directory use one store, whichever opens it first.

A notebook keeps handles that nobody sees, so opening a directory once more must work. The directory is known by its
lock file, whose descriptor the store holds: a directory that was removed and made again is another one.

A store that failed, or whose directory was moved or replaced, is closed when the directory is opened once more. One for
reading only makes way for one that writes, and the handles that there are move to it.

After a fork the child has none of these stores. A handle that is used there opens the directory once more, to read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections.abc import Callable
from functools import partial

from xtree.errors import ClosedError, LockedError, TransactionError
from xtree.persistence.base.config import StoreConfig
from xtree.persistence.base.lock_ranks import require_nothing_held
from xtree.persistence.base.progress import Progress
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.files.open_directory import DirectoryLostError
from xtree.persistence.files.platform_fs import FileSystem
from xtree.persistence.opening import open_for_writing, open_store
from xtree.persistence.session import Session, SharedStore, Turn, arriving_session, share_of
from xtree.persistence.store.store import Store

POLL_S = 0.02


def new_session(path: str, mode: str, on_error: Callable[[BaseException], object] | None = None) -> Session:
    """A session that has no store yet. Its holder closes it, whatever becomes of `open_session`."""
    place = FileSystem().real_path(path)
    refusal = f"the index {place} was opened with mode='r'" if mode == "r" else None
    return Session(None, place, refusal, on_error, _reopen)


def open_session(
    session: Session,
    mode: str = "a",
    config: StoreConfig | None = None,
    durability: str | None = None,
    timeout: float | None = 0,
    progress: Progress | None = None,
    usual: StoreConfig | None = None,
) -> None:
    """Gives a new session the store of its directory: the one that this process has open, or one of `open_store`.

    The caller closes the session, even when this fails: it may have joined others.

    config, durability: None for those in force, or, where there are none, for `usual`. Waits for another thread that is
    opening it, but not for one that waits for another process. Raises what open_store does, ValueError for a config or
    durability other than those in force, and TransactionError where it would wait for itself.
    """
    require_nothing_held("opening an index")
    assert session.path is not None
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            with Turn(session.path):
                while not _joined(session, mode, config, durability, progress, usual):
                    pass
            return
        except (LockedError, FileExistsError) as error:
            locked = error if isinstance(error, LockedError) else error.__cause__  # of one that is being made
            if not isinstance(locked, LockedError) or (deadline is not None and time.monotonic() >= deadline):
                raise
        time.sleep(POLL_S)  # while others have their turn


def _joined(
    session: Session,
    mode: str,
    config: StoreConfig | None = None,
    durability: str | None = None,
    progress: Progress | None = None,
    usual: StoreConfig | None = None,
) -> bool:
    """Gives the session a store; returns False when there was one, which was closed in the middle of this."""
    place = session.path
    assert place is not None
    share = _share_at(place, mode)
    settings = _settings(config or usual, durability)
    if share is None:
        SharedStore().open(session, partial(open_store, place, mode=mode, config=settings, progress=progress))
        return True
    if not share.store.read_only:
        _require_agreement(share.store.config, config, durability)
    if not share.join(session):
        return False
    if mode == "r" or not share.store.read_only:
        return True
    return share.make_writable(partial(open_for_writing, config=settings, progress=progress))


def _share_at(path: str, mode: str) -> SharedStore | None:
    """What this process has open in the directory at a path, if anything; a store that can't be joined is closed."""
    identity = FileSystem().lock_identity(path)
    share = share_of(identity)
    if share is None:
        return None
    if not share.ended:
        if not share.store.is_in(path) and not share.ended:
            raise LockedError(
                errno.EWOULDBLOCK,
                f"its lock file is a link to that of {share.store.path}, which this process has open",
                path,
            )
        if mode == "x":
            raise FileExistsError(errno.EEXIST, "there is an index already", path)
        if mode == "r" and share.store.state != "closed":  # one that failed can still be read
            return share
        if share.store.state == "open" and _is_own(share):
            return share
    if share.store.waits_for_itself():
        raise TransactionError("opening the index can't wait for its end here, in the middle of one of its own calls")
    with contextlib.suppress(DirectoryLostError):
        share.close()
    if share_of(identity) is share:
        raise LockedError(errno.EWOULDBLOCK, "this process is closing the index: that ends with the calls in it", path)
    return _share_at(path, mode)


def _is_own(share: SharedStore) -> bool:
    """Whether the directory is still where it was opened."""
    try:
        share.store.require_own()
    except DirectoryLostError:
        return False
    return True


def _settings(config: StoreConfig | None, durability: str | None) -> StoreConfig:
    config = config or StoreConfig()
    return config if durability is None else config.changed(durability=durability)


def _require_agreement(present: StoreConfig, config: StoreConfig | None, durability: str | None) -> None:
    """Raises ValueError for given settings that aren't those in force, except those that never change."""
    if config is not None:
        wanted = dataclasses.asdict(_settings(config, durability))
    else:
        wanted = {} if durability is None else {"durability": durability}
    for name, value in wanted.items():
        if name not in StoreConfig.STORED and value != getattr(present, name, value):
            raise ValueError(
                f"this process has the index open with {name}={getattr(present, name)!r}, not {value!r}: leave it out, "
                "or close the other handles first"
            )


def _reopen(session: Session) -> None:
    """In a forked child: opens the directory of a parent's handle to read, if it is still the same index."""
    inherited = session.store
    assert isinstance(inherited, DurableStore)
    why = "the index was opened before a fork, and the child process reads it only while no other process writes to it"
    joined = _join_to_read(session, inherited, why)
    session.start_in_child()
    if joined is not None and joined.uuid != inherited.uuid:
        session.close()
        raise ClosedError(f"{session.path}: another index was put in its place since the fork")


def session_at(path: str, uuid: bytes, epoch: int) -> Session:
    """A session that arrives in a pickle: at its first use it opens a directory to read.

    That use raises FileNotFoundError, LockedError while another process writes, and ValueError for an index with
    another UUID, or an earlier epoch of it.
    """
    return arriving_session(path, partial(_arrive, uuid, epoch))


def _arrive(uuid: bytes, epoch: int, session: Session) -> None:
    why = "a pickled index is opened to read where it arrives, which takes that no other process writes to it"
    joined = _join_to_read(session, session.store, why)
    if joined is None or (joined.uuid == uuid and joined.published.epoch >= epoch):
        return
    found = joined.uuid, joined.published.epoch
    session.close()
    if found[0] != uuid:
        raise ValueError(f"{session.path}: expected the index that was pickled, found another one in its place")
    raise ValueError(
        f"{session.path}: expected epoch {epoch} or a later one, found {found[1]}: an older copy of the index?"
    )


def _join_to_read(session: Session, away: Store, why: str) -> DurableStore | None:
    """Gives a session that came from another process a store; None when another thread has done so.

    why: what LockedError says when another process writes to the index.
    """
    require_nothing_held("opening an index")
    assert session.path is not None
    with Turn(session.path):
        if session.store is not away:
            return None
        try:
            while not _joined(session, "r"):
                pass
        except LockedError as error:
            raise LockedError(errno.EWOULDBLOCK, f"{why}: {error.strerror}", session.path) from error
        joined = session.store
        return joined if isinstance(joined, DurableStore) else None
