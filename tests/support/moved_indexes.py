"""Two indexes that take each other's place, and what must be true of the one that is there at the end."""

from __future__ import annotations

from pathlib import Path

from support.text_pages import by_request, put, settle, texts_of
from xtree.persistence.opening import open_store
from xtree.tools.fsck import fsck

CONFIG = by_request()
OLD = {"old": "1", "both": "old"}
NEW = {"new": "2", "both": "new"}


def open_old(path: Path):
    """An open index with commits in no checkpoint, and of which nothing of a later one is known."""
    store = open_store(path, config=CONFIG)
    for name, text in OLD.items():
        put(store, {name: text})
    settle(store)
    return store


def make_new(path: Path):
    store = open_store(path, config=CONFIG)
    for name, text in NEW.items():
        put(store, {name: text})
    settle(store)
    return store


def require_whole(path: Path, texts: dict[str, str]) -> None:
    """Asserts that the index opens, holds just these texts, and that fsck finds nothing wrong."""
    report = fsck(path)
    assert report.ok, [str(finding) for finding in report.findings]
    store = open_store(path, mode="r+", config=CONFIG)
    assert texts_of(store) == texts
    store.check()
    put(store, {"later": "5"})
    store.close()
    assert fsck(path).ok
