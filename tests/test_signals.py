"""Signals: whenever a KeyboardInterrupt arrives, a commit is whole or not at all, and its status says which."""

from __future__ import annotations

import random
import signal

import pytest
from pages import KIND, SMALL, texts_of

from xtree.persistence.catalog import CatalogEntry
from xtree.persistence.memory_store import MemoryStore
from xtree.persistence.runtime import open_store

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
SIGNALS = 3000


under_fire = False


def interrupt(number, frame):
    """A signal that another thread took may come late, when the commit it was meant for is over."""
    if under_fire:
        raise KeyboardInterrupt


def commit_under_fire(store, texts: dict[str, str], name: str, text: str, delay_s: float) -> bool:
    """One commit with a signal on its way; returns whether the signal arrived before the outcome was checked."""
    global under_fire
    write_set = None
    arrived = False
    try:
        under_fire = True
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        write_set = store.begin()
        entry = write_set.base.catalog.get(name)
        content = text.encode().ljust(64, b"\0")
        root = write_set.add_page(KIND, 0, content) if entry is None else write_set.replace_page(entry.root, content)
        write_set.commit({name: CatalogEntry(name, "text", root, b"")})
    except KeyboardInterrupt:
        arrived = True
    under_fire = False
    signal.setitimer(signal.ITIMER_REAL, 0)
    if write_set is not None:
        assert write_set.status in ("open", "committed", "aborted")
        if write_set.status == "committed":
            texts[name] = text
        write_set.abort()
    return arrived


@pytest.mark.parametrize("kind", ["memory", "durable"])
def test_thousands_of_interrupts_tear_no_commit(kind, tmp_path):
    global under_fire
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    store = MemoryStore() if kind == "memory" else open_store(tmp_path / "index", config=SMALL)
    texts: dict[str, str] = {}
    arrived = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(SIGNALS):
            name = f"n{rng.randrange(6)}"
            longest = 300e-6 if kind == "durable" else 30e-6
            try:
                arrived += commit_under_fire(store, texts, name, f"{name} {i}", rng.uniform(1e-6, longest))
            except KeyboardInterrupt:  # between two statements of the test itself: the outcome can't be known
                under_fire = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                arrived += 1
                texts.clear()
                texts.update(texts_of(store))
            assert texts_of(store) == texts, i
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert arrived > SIGNALS // 20
    stats = store.table.stats()
    assert stats["reserved"] == 0
    store.check()
    store.close()
    if kind == "durable":
        store = open_store(tmp_path / "index", config=SMALL)
        assert texts_of(store) == texts
        store.close()


def test_the_leader_thread_is_gone_after_close(tmp_path):
    import threading

    store = open_store(tmp_path / "index", config=SMALL)
    store.begin().abort()
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "xtree-leader"]
