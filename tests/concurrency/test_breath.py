"""Interrupts of long calls: at any moment a call goes on, or ends with what the handler raised and nothing changed.

Promises (Right answers):

- at any breath of a call an interrupt ends it with nothing changed and no thread left, and a handler that returns
  lets it go on:
  all of it.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import brute_force

import xtree
from xtree.algorithms.kernels import parallel
from xtree.persistence.base import breath

N = 3000
MOST_TRIED = 40  # moments of a call at which it is interrupted

rng = np.random.default_rng(5)
IDS, BOXES = np.arange(N), brute_force.random_boxes(rng, N, 3, 0.05)
MORE = brute_force.random_boxes(rng, 1500, 3, 0.05)
WINDOWS = brute_force.random_boxes(rng, 400, 3, 0.2)
POINTS = rng.random((300, 3))
EVERYTHING = (-1.0, -1.0, -1.0, 2.0, 2.0, 2.0)

READS: dict[str, Callable[[Any], Any]] = {
    "query": lambda tree: tree.query(WINDOWS, output="csr"),
    "pairs": lambda tree: tree.query(WINDOWS),
    "few windows": lambda tree: tree.query(WINDOWS[:20]),
    "query in threads": lambda tree: tree.query(WINDOWS, threads=3),
    "one window": lambda tree: tree.query(EVERYTHING),
    "count": lambda tree: tree.count(WINDOWS),
    "count in threads": lambda tree: tree.count(WINDOWS, threads=3),
    "one count": lambda tree: tree.count(EVERYTHING),
    "nearest": lambda tree: tree.nearest(POINTS, 5),
    "nearest in threads": lambda tree: tree.nearest(POINTS, 5, threads=3),
    "one nearest": lambda tree: tree.nearest(POINTS[0], N),
    "explain": lambda tree: tree.explain(WINDOWS),
    "explain_nearest": lambda tree: tree.explain_nearest(POINTS, 5),
    "join": lambda tree: tree.join(tree),
    "items": lambda tree: tree.items(),
    "check": lambda tree: tree.check(),
    "stats": lambda tree: tree.stats()["levels"],
    "contains": lambda tree: (-1, EVERYTHING) in tree,
}
WRITES: dict[str, Callable[[Any], Any]] = {
    "insert_many": lambda tree: tree.insert_many(IDS[:1500], MORE),
    "few rows": lambda tree: tree.insert_many(IDS[:100], MORE[:100]),
    "delete_many": lambda tree: tree.delete_many(IDS[::2], BOXES[::2]),
    "bulk_load": lambda tree: tree.bulk_load(IDS[:1500], MORE),
}


@pytest.fixture(autouse=True)
def handler():
    """SIGINT raises KeyboardInterrupt, also where the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    breath.watch_breaths(False)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def tree(make_tree):
    tree = make_tree(3)
    tree.bulk_load(IDS, BOXES)
    return tree


@pytest.fixture(params=["tree", "snapshot", "transaction"])
def reader(request, tree):
    if request.param == "tree":
        yield tree
    elif request.param == "snapshot":
        with tree.snapshot() as snapshot:
            yield snapshot
    else:
        with tree.transaction() as tx:
            tx.insert_many(IDS[:500], MORE[:500])
            yield tx


def moments(call: Callable[[], Any]) -> list[int]:
    """The breaths of a call at which to interrupt it: all, or some if there are many."""
    breath.watch_breaths(True)
    call()
    breaths = breath.breath_count()
    breath.watch_breaths(False)
    assert breaths
    return sorted({1 + i * (breaths - 1) // (MOST_TRIED - 1) for i in range(MOST_TRIED)})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", READS)
def test_an_interrupt_ends_a_reading_call_at_any_moment(reader, name):
    call = READS[name]
    expected = call(reader)
    threads = threading.active_count()
    for moment in moments(lambda: call(reader)):
        breath.interrupt_breath(moment)
        with pytest.raises(KeyboardInterrupt):
            call(reader)
        assert threading.active_count() == threads
    breath.watch_breaths(False)
    assert same(call(reader), expected)


@pytest.mark.parametrize("name", READS)
def test_a_reading_call_goes_on_when_the_handler_returns(tree, name):
    """The call goes on whatever the handler does with the tree."""
    call = READS[name]
    expected = call(tree)
    answers = []

    def handle(number, frame):
        breath.watch_breaths(False)
        answers.append(tree.query(EVERYTHING).size + tree.nearest(POINTS[0], 7).size + tree.count(WINDOWS).size)
        breath.watch_breaths(True)

    tried = moments(lambda: call(tree))
    signal.signal(signal.SIGINT, handle)
    for moment in tried:
        breath.interrupt_breath(moment)
        assert same(call(tree), expected)
    assert answers == [N + 7 + len(WINDOWS)] * len(tried)


@pytest.mark.parametrize("error", [TimeoutError("too long"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["query", "query in threads", "nearest", "join", "check"])
def test_what_a_handler_raises_is_passed_on(tree, name, error):
    def handle(number, frame):
        raise error

    tried = moments(lambda: READS[name](tree))
    signal.signal(signal.SIGINT, handle)
    for moment in tried:
        breath.interrupt_breath(moment)
        with pytest.raises(type(error)) as raised:
            READS[name](tree)
        assert raised.value is error


def records(tree):
    return brute_force.records(*tree.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITES)
def test_an_interrupt_ends_a_writing_call_at_any_moment_with_the_tree_as_it_was(tree, name):
    call = WRITES[name]
    for moment in moments(lambda: in_vain(tree, call)):
        breath.interrupt_breath(moment)
        with pytest.raises(KeyboardInterrupt):
            call(tree)
        breath.watch_breaths(False)
        assert records(tree) == brute_force.records(IDS, BOXES)
        tree.check()
    call(tree)
    assert records(tree) != brute_force.records(IDS, BOXES)


def in_vain(tree, call):
    """A writing call that is aborted once it is done."""
    tx = tree.transaction()
    with tx:
        call(tx)
        tx.abort()


@pytest.mark.parametrize("name", WRITES)
def test_an_interrupt_of_a_writing_call_dooms_its_transaction(tree, name):
    for moment in moments(lambda: in_vain(tree, WRITES[name]))[::4]:
        with pytest.raises(KeyboardInterrupt), tree.transaction() as tx:
            tx.insert(-1, EVERYTHING)
            breath.interrupt_breath(moment)
            WRITES[name](tx)
        assert tx.status == "aborted"
        breath.watch_breaths(False)
        assert records(tree) == brute_force.records(IDS, BOXES)


@pytest.mark.parametrize("name", WRITES)
def test_a_writing_call_goes_on_when_the_handler_returns(make_tree, name):
    """A handler may read. Calls that would have to wait for the interrupted call are refused."""
    model = make_tree(3)
    model.bulk_load(IDS, BOXES)
    WRITES[name](model)
    refused = []

    def handle(number, frame):
        breath.watch_breaths(False)
        assert len(tree) == N
        with pytest.raises(xtree.TransactionError):
            tree.insert(-1, EVERYTHING)
        refused.append(1)

    for moment in (3, 9, 17, 40):  # once the writer lock is taken
        tree = make_tree(3)
        tree.bulk_load(IDS, BOXES)
        signal.signal(signal.SIGINT, handle)
        breath.interrupt_breath(moment)
        WRITES[name](tree)
        breath.watch_breaths(False)
        tree.check()
        assert records(tree) == records(model)
    assert refused == [1] * 4


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_interrupt_ends_a_load_in_threads_when_all_have_ended(make_tree, monkeypatch, threads):
    n = 70_000
    boxes = brute_force.random_boxes(np.random.default_rng(2), n, 2, 0.01)
    running: list[object] = []

    def start(function, *arguments):
        def run():
            try:
                return function(*arguments)
            finally:
                running.remove(run)

        running.append(run)
        return original(run)

    original = parallel.in_new_thread
    monkeypatch.setattr(parallel, "in_new_thread", start)
    tree = make_tree(2)
    tree.insert(7, (0.5, 0.5))
    breath.watch_breaths(True)
    xtree.XTree.from_boxes(boxes, threads=threads).close()
    breaths = breath.breath_count()
    for moment in range(1, breaths * 9 // 10, breaths // 10):
        breath.interrupt_breath(moment)
        with pytest.raises(KeyboardInterrupt):
            tree.bulk_load(np.arange(n), boxes, threads=threads)
        assert not running
        breath.watch_breaths(False)
        assert len(tree) == 1
        tree.check()


def test_interrupts_while_a_call_waits_for_its_threads_stop_them_and_leave_none_behind():
    """A second and a third interrupt change nothing.

    One that comes just before the thread begins to wait is seen with the next one; one that is seen when the call has
    ended is ignored, since it would be raised in the test.
    """
    raised, ended = [], []
    waiting, stopped = threading.Event(), threading.Event()
    team = breath.Team()

    def interrupt(number, frame):
        if len(ended) < 2:
            raised.append(number)
            raise KeyboardInterrupt

    def work(number):
        if not number:
            waiting.set()
            return
        assert waiting.wait(60)
        for _ in range(3):
            before, deadline = len(raised), time.monotonic() + 60
            while len(raised) == before:
                assert time.monotonic() < deadline
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.01)
        assert stopped.wait(60)
        ended.append(number)

    signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=wait_until_stopped, args=(team, stopped), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        parallel.together(team, [lambda: work(0), lambda: work(1), lambda: work(2)])
    assert sorted(ended) == [1, 2] and len(raised) >= 3


def test_an_interrupt_just_before_a_call_waits_for_its_threads_is_seen_at_once():
    """It arrives in compiled code, where no handler runs, after the last breath of the thread's own share."""
    team = breath.Team()
    stopped = []

    def wait():
        deadline = time.monotonic() + 20
        while not team.is_stopped and time.monotonic() < deadline:
            time.sleep(1e-3)
        stopped.append(team.is_stopped)

    with pytest.raises(KeyboardInterrupt):
        parallel.together(team, [_thread.interrupt_main, wait])
    assert stopped == [True]


def wait_until_stopped(team, stopped):
    while not team.is_stopped:
        pass
    stopped.set()


def test_a_call_in_another_thread_takes_no_breath_for_signals(tree):
    breath.watch_breaths(True)
    thread = threading.Thread(target=lambda: [READS[name](tree) for name in READS])
    thread.start()
    thread.join()
    assert breath.breath_count() == 0


def test_an_error_in_one_thread_stops_the_others_and_is_the_one_to_be_told(tree):
    rows = np.arange(4.0 * parallel.LEAST_ROWS)

    def answer(store, state, part, team):
        if part[0] == 2.0 * parallel.LEAST_ROWS:
            raise xtree.CorruptionError("damaged")
        while not team.is_stopped:
            pass
        raise breath.Stopped

    with pytest.raises(xtree.CorruptionError, match="damaged"):
        tree._read(parallel.in_threads, 4, answer, rows)


def test_an_interrupt_ends_a_close_that_waits_and_leaves_the_index_open(tree):
    """The call that it waits for goes on, and the next close waits for it again."""
    inside, go_on = threading.Event(), threading.Event()
    answers = []

    def answer(store, state):
        inside.set()
        assert go_on.wait(60)
        return state.count

    reading = threading.Thread(target=lambda: answers.append(tree._read(answer)))
    reading.start()
    inside.wait(60)
    timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tree._store.close()
    assert tree.query(EVERYTHING).size == N
    go_on.set()
    reading.join()
    assert answers == [N]
