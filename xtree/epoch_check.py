"""The check of an epoch: every tree in it is right, and each of its pages belongs to one tree or structure.

A live page that nothing reaches is lost: nobody will ever retire it. A page that two of them reach will be retired
twice.
"""

from __future__ import annotations

from xtree.algorithms.bucket import PAGE_KINDS
from xtree.algorithms.queries import inspection
from xtree.errors import CorruptionError
from xtree.persistence.session import Session
from xtree.persistence.store.catalog import CatalogEntry
from xtree.persistence.store.reached_pages import ReachedPages
from xtree.persistence.store.store import Pin, Store
from xtree.roots import KIND, decode_state, is_known, tree_state_of

__all__ = ["check_all", "check_epoch"]


def check_all(session: Session) -> None:
    """Verifies a session's store, its files and every tree that there is now. Raises CorruptionError, OSError."""
    while True:
        with session.call() as store:
            try:
                store.check()
                break
            except CorruptionError:
                if store is session.current():  # else a store that writes has taken its place and changes the files
                    raise
    pin = session.pin()
    try:
        check_epoch(pin.store, pin)
    finally:
        pin.release()


def check_epoch(store: Store, pin: Pin) -> None:
    """Verifies all trees of a pinned epoch page by page, and that each page is in one tree or structure, once.

    When there is a structure of a kind that nothing has registered, only lost pages of trees are looked for: nobody
    else knows which of the other pages are the structure's. Writers may go on meanwhile. Raises CorruptionError,
    ClosedError, and what the `pages` of a structure raises.
    """
    catalog = pin.published.catalog
    reached = ReachedPages(store)
    all_known = True
    for entry in sorted(catalog, key=lambda entry: entry.name):
        if entry.kind == KIND:
            with store.call():
                inspection.check(store, tree_state_of(entry), reached)
        elif is_known(entry.kind):
            _reach(store, entry, reached)
        else:
            all_known = False
    with store.call():
        count, first = reached.lost(pin.epoch, None if all_known else PAGE_KINDS)
    if count:
        where = "in memory" if store.path is None else str(store.path)
        raise CorruptionError(
            f"{where}: expected every page in a tree or structure, found {count} live ones that none reaches, "
            f"the first of them node {first:#x}"
        )


def _reach(store: Store, entry: CatalogEntry, reached: ReachedPages) -> None:
    for node in decode_state(entry).pages(store):
        if reached.reach_page(node):
            raise CorruptionError(
                f"structure {entry.name!r}: expected every page once, found node {node:#x}, which was reached before"
            )
