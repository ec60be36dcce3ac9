"""Backpressure: writers wait for checkpoints when the log has run ahead of them, but never for ever.

Promises (Nothing acknowledged is lost):

- writers wait when the log outruns checkpoints, and never without end:
  all of it.
"""

from __future__ import annotations

import errno
import threading

import pytest
from support.faulty_fs import PATIENCE_S, FaultyFileSystem
from support.text_pages import ManualClock, put, settle, small, texts_of

import xtree
from xtree.config import Config
from xtree.errors import ClosedError, StoreFailedError
from xtree.persistence.base.crash_points import set_hook
from xtree.persistence.commit.backpressure import LONGEST_PAUSE_S, Backpressure
from xtree.persistence.durable_store import DurableStore
from xtree.persistence.opening import open_store
from xtree.persistence.store.memory_store import MemoryStore

LIMIT = 100_000


@pytest.fixture(autouse=True)
def no_hook():
    yield
    set_hook(None)


class Log:
    """How much log is outstanding, and who has asked for a checkpoint."""

    def __init__(self, outstanding):
        self.outstanding, self.demands = outstanding, 0

    def demand(self):
        self.demands += 1


class TimePasses(ManualClock):
    """A clock on which every wait is over at once; `meanwhile` is what happens during the wait."""

    def __init__(self):
        super().__init__()
        self.waits, self.meanwhile = [], lambda: None

    def wait(self, condition, timeout):
        self.waits.append(timeout)
        self.time += timeout
        self.meanwhile()
        return False


def made(log, clock):
    config = Config(log_limit_bytes=LIMIT, backpressure_timeout_s=30)
    return Backpressure(config, clock, lambda: log.outstanding, log.demand)


def wait(backpressure, timeout=None, error=None, require_writable=lambda: None):
    backpressure.wait_for_room(timeout, require_writable, lambda: error)


def test_below_four_fifths_of_the_limit_nothing_happens():
    log, clock = Log(79_999), TimePasses()
    wait(made(log, clock))
    assert clock.waits == [] and log.demands == 0


def test_near_the_limit_writers_pause_the_longer_the_nearer_and_a_checkpoint_is_demanded():
    clock, pauses = TimePasses(), []
    for outstanding in (80_000, 85_000, 90_000, 99_999):
        log = Log(outstanding)
        backpressure = made(log, clock)
        wait(backpressure)
        assert log.demands == backpressure.waits == 1
        pauses.append(clock.waits.pop())
    assert pauses == sorted(pauses) and pauses[0] == 0.0
    assert pauses[2] == pytest.approx(LONGEST_PAUSE_S / 2) and pauses[3] < LONGEST_PAUSE_S


@pytest.mark.parametrize(("timeout", "patience"), [(None, 30.0), (2.5, 2.5), (0.0, 0.0)])
def test_at_the_limit_the_wait_ends_after_its_timeout_with_the_limit_and_the_reason(timeout, patience):
    log, clock = Log(LIMIT), TimePasses()
    backpressure = made(log, clock)
    cause = OSError(errno.EIO, "of the last checkpoint")
    with pytest.raises(TimeoutError, match=f"log_limit_bytes is {LIMIT}") as raised:
        wait(backpressure, timeout, cause)
    assert raised.value.__cause__ is cause
    assert clock.time == patience
    stats = backpressure.stats()
    assert stats["room_waits"] == stats["room_timeouts"] == 1
    assert stats["room_wait_seconds"] == patience and stats["log_bytes_outstanding"] == LIMIT


def test_a_wait_ends_as_soon_as_there_is_room():
    log, clock = Log(2 * LIMIT), TimePasses()
    backpressure = made(log, clock)
    clock.meanwhile = lambda: setattr(log, "outstanding", log.outstanding - LIMIT + 1 if len(clock.waits) == 1 else 0)
    clock.wait = lambda condition, timeout: (clock.waits.append(timeout), clock.meanwhile())
    wait(backpressure)
    assert len(clock.waits) == 2 and backpressure.timeouts == 0


def test_a_store_that_closes_or_fails_ends_the_wait_with_its_error():
    log, clock = Log(LIMIT), TimePasses()

    def closed():
        if clock.waits:
            raise ClosedError("closed meanwhile")

    with pytest.raises(ClosedError):
        wait(made(log, clock), 100.0, None, closed)
    assert len(clock.waits) <= 1


def limited(**fields):
    manual = {"checkpoint_log_bytes": 1 << 30, "checkpoint_burst_log_bytes": 1 << 30}
    manual |= {"checkpoint_interval_s": 1e8, "checkpoint_idle_s": 1e8}
    return small("balanced", log_limit_bytes=64 << 10, **{**manual, **fields})


def over_the_limit(store):
    i = 0
    while store.stats()["coordinator"]["log_bytes_outstanding"] < 64 << 10:
        put(store, {"a": f"{i}", f"n{i}": "x"}, size_class=1)
        i += 1


def test_a_writer_waits_for_the_checkpoint_that_it_demands_and_then_goes_on(tmp_path):
    store = open_store(tmp_path / "index", config=limited())
    over_the_limit(store)
    store.wait_for_room()
    stats = store.stats()["coordinator"]
    assert stats["log_bytes_outstanding"] < 64 << 10
    assert stats["checkpoint_reason"] == "demand" and stats["room_waits"] == 1 and stats["room_timeouts"] == 0
    store.close()


def test_when_checkpoints_fail_writers_get_the_error_after_their_timeout_and_nobody_else_stops(tmp_path):
    fs = FaultyFileSystem()
    store = open_store(tmp_path / "index", config=limited(backpressure_timeout_s=0.05), fs=fs)
    fs.judge = lambda call, path: errno.EIO if call == "pwritev" and path.endswith(".ckpt.tmp") else None
    over_the_limit(store)
    for timeout in (None, 0.01):
        with pytest.raises(TimeoutError, match="no room in the log") as raised:
            store.wait_for_room(timeout)
    assert isinstance(raised.value.__cause__, OSError) and raised.value.__cause__.errno == errno.EIO
    assert texts_of(store)["a"]
    put(store, {"a": "the leader never waits"})
    fs.heal()
    store.checkpoint()
    store.wait_for_room(0.0)
    store.close()


@pytest.mark.parametrize(("end", "error"), [("close", ClosedError), ("poison", StoreFailedError)])
def test_a_wait_ends_when_the_store_does(tmp_path, end, error):
    fs, holding, go = FaultyFileSystem(), threading.Event(), threading.Event()

    def hook(name):
        if name == "checkpoint.data_synced" and not go.is_set():
            holding.set()
            assert go.wait(PATIENCE_S)

    store = open_store(tmp_path / "index", config=limited(), fs=fs, clock=ManualClock())
    over_the_limit(store)
    set_hook(hook)
    outcome = []

    def wait_in_a_thread():
        try:
            store.wait_for_room(1000.0)
        except BaseException as raised:
            outcome.append(raised)

    waiting = threading.Thread(target=wait_in_a_thread)
    waiting.start()
    assert holding.wait(PATIENCE_S)
    if end == "close":
        closing = threading.Thread(target=store.close)
        closing.start()
        waiting.join(PATIENCE_S)
        go.set()
        closing.join()
    else:
        fs.fail("sync", ".log")
        with pytest.raises(OSError):
            put(store, {"a": "lost"})
        waiting.join(PATIENCE_S)
        go.set()
    assert not waiting.is_alive() and isinstance(outcome[0], error)
    fs.heal()
    store.close()


def test_transactions_of_a_tree_wait_before_they_take_a_lock_and_end_with_their_own_timeout(tmp_path):
    config = limited(backpressure_timeout_s=20.0)
    with xtree.Runtime(tmp_path / "index", config=config) as runtime:
        tree = runtime.tree("a", dims=2)
        for i in range(300):
            tree.insert(i, [i, i, i + 1, i + 1])
        stats = runtime.stats()["coordinator"]
        assert stats["room_waits"] >= 1 and stats["room_timeouts"] == 0 and stats["checkpoints"] >= 1
        assert len(tree) == 300


def test_room_in_memory_is_never_waited_for():
    store = MemoryStore()
    store.wait_for_room(None)
    store.close()


def test_settled_means_that_no_log_is_outstanding(tmp_path):
    store = open_store(tmp_path / "index", config=limited())
    over_the_limit(store)
    store.checkpoint()
    settle(store)
    assert store.stats()["coordinator"]["log_bytes_outstanding"] == 0
    store.close()


def test_who_waits_for_room_to_make_a_tree_stops_nobody_from_finding_one(tmp_path, monkeypatch):
    waits, goes_on = threading.Event(), threading.Event()
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("a", dims=2)

        def wait_for_room(store, timeout=None):
            waits.set()
            assert goes_on.wait(PATIENCE_S)

        monkeypatch.setattr(DurableStore, "wait_for_room", wait_for_room)
        maker = threading.Thread(target=runtime.tree, args=("new", 2))
        finder = threading.Thread(target=runtime.tree, args=("a",))
        maker.start()
        assert waits.wait(PATIENCE_S)
        finder.start()
        finder.join(PATIENCE_S)
        found = not finder.is_alive()
        goes_on.set()
        maker.join()
        finder.join()
        assert found and runtime.trees() == ["a", "new"]
