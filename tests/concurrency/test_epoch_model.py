"""The protocols by which readers need no locks, in models whose every interleaving is explored.

The models: epochs and the reuse of slots (epoch_model.py), windows and flights (window_model.py), the hand-off of
commits (handoff_model.py). Each is run as the code has it, and in a number of mutants, all of which must be found
out: that tests the models. A test looks in the code for the steps of the models.

Promises (One writer, many readers):

- no interleaving of pins, publication, reclaim and crashes reuses a slot that is needed; the same for windows, and
  for the hand-off of commits; mutants of each protocol are found out:
  all of it.
"""

from __future__ import annotations

import re

import pytest
from support import epoch_model, handoff_model, window_model
from support.interleaving import END, State, explore, in_order, load, put, store
from support.places import ROOT

SOURCES = {path.name: path for path in (ROOT / "xtree" / "persistence").rglob("*.py*")}

ONE_READER = {"readers": 1}
ONE_OLD = {"old": 1}
ONE_CRASH = {"eventual": True, "crashes": 1}
TWO_CRASHES = {"eventual": True, "crashes": 2, "commits": 2}

EPOCH_MUTANTS = {
    "pins don't count": ONE_READER,
    "no second look at the epoch": ONE_READER,
    "pin without fence": ONE_READER,
    "published before the pin": ONE_READER,
    "one scan, slots before the current epoch": ONE_READER,
    "unpin before the last look": ONE_READER,
    "pointer before rows": ONE_READER,
    "current epoch before pointer": ONE_READER,
    "retired one epoch early": ONE_READER,
    "horizon one epoch too high": ONE_READER,
    "no horizon": ONE_OLD,
    "horizon without fence": ONE_OLD,
    "no second scan": ONE_OLD,
    "no look at the horizon": ONE_OLD,
    "horizon before the slot": ONE_OLD,
    "horizon behind both scans": ONE_OLD,
    "reuse whether durable or not": ONE_CRASH,
    "durable as of the end of a sync": ONE_CRASH,
    "log before pages": ONE_CRASH,
    "no sync at the end of recovery": TWO_CRASHES,
}
WINDOW_MUTANTS = [
    "no wait for flights",
    "flight without fence",
    "hidden without fence",
    "generation before hiding",
    "drop without a look at the base",
    "a breath with a pointer",
    "a mapping is shown without the GIL",
    "grown without fence",
    "published before it is mapped",
    "outgrown mappings looked for after the wait",
]
HANDOFF_MUTANTS = [
    "the writer lock goes before the commit is queued",
    "a notification instead of a lock",
    "the queue is copied and then emptied",
    "the leader takes no turn",
    "publication before the sync, and the sync after the end",
    "a finalizer waits for its commit in the leader",
    "the bell is rung before the commit is queued",
    "who rings says that the leader is awake",
    "the leader looks, and says then that it sleeps",
    "a woken thread wakes nobody",
    "a thread that handles signals wakes others",
]
CARRYING_MUTANTS = [
    "a carried commit overtakes what is queued",
    "the leader takes what is queued before its turn",
    "what couldn't be carried isn't put back",
]
WAKING = "the GIL is given away before the bell is silenced"


def expect_nothing_wrong(model, tally) -> None:
    found = explore(*model)
    assert found.flaw is None, found
    assert found.ended
    tally("states of protocols explored", found.states)


def expect_flaw(model, tally) -> None:
    found = explore(*model)
    assert found.flaw is not None and found.history, "the model doesn't see it"
    tally("mutants of protocols found out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [ONE_READER, ONE_OLD, {"crashes": 1, "commits": 2}, {**ONE_CRASH, "commits": 2}], ids=str
)
def test_no_interleaving_reuses_a_slot_that_a_reader_or_a_crash_needs(sizes, tally):
    expect_nothing_wrong(epoch_model.model(**sizes), tally)


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "sizes",
    [
        {"readers": 2, "commits": 2},
        {"readers": 1, "old": 1, "commits": 2},
        {"readers": 1, "eventual": True, "commits": 2},
        {"readers": 1, "crashes": 1, "commits": 2},
        ONE_CRASH,
        TWO_CRASHES,
    ],
    ids=str,
)
def test_no_interleaving_of_more_readers_and_crashes_does(sizes, tally):
    expect_nothing_wrong(epoch_model.model(**sizes), tally)


@pytest.mark.parametrize("mutant", EPOCH_MUTANTS)
def test_a_mutant_of_the_epochs_is_found_out(mutant, tally):
    expect_flaw(epoch_model.model(mutant, **EPOCH_MUTANTS[mutant]), tally)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_interleaving_unmaps_a_window_that_a_call_uses(calls, tally):
    expect_nothing_wrong(window_model.model(calls=calls), tally)


@pytest.mark.parametrize("mutant", WINDOW_MUTANTS)
def test_a_mutant_of_the_windows_is_found_out(mutant, tally):
    expect_flaw(window_model.model(mutant), tally)


@pytest.mark.parametrize("trees", [(0, 0, 1), (0, 0, 0), (0, 1, 2)])
def test_no_interleaving_of_commits_loses_a_wake_up_or_returns_before_the_sync(trees, tally):
    expect_nothing_wrong(handoff_model.model(trees=trees), tally)


@pytest.mark.parametrize("trees", [(0, 0, 1), (0, 0, 0), pytest.param((0, 1, 2), marks=pytest.mark.torture)])
def test_no_interleaving_of_eventual_commits_loses_a_wake_up_or_their_order(trees, tally):
    expect_nothing_wrong(handoff_model.model(trees=trees, eventual=True), tally)


def test_no_interleaving_of_commits_and_other_work_leaves_the_leader_asleep(tally):
    expect_nothing_wrong(handoff_model.model(trees=(0, 1), wakes=True), tally)
    expect_flaw(handoff_model.model(WAKING, (0, 1), True), tally)


@pytest.mark.parametrize("mutant", HANDOFF_MUTANTS)
def test_a_mutant_of_the_hand_off_is_found_out(mutant, tally):
    expect_flaw(handoff_model.model(mutant), tally)


@pytest.mark.parametrize("mutant", CARRYING_MUTANTS)
def test_a_mutant_of_the_hand_off_in_eventual_mode_is_found_out(mutant, tally):
    expect_flaw(handoff_model.model(mutant, eventual=True), tally)


@pytest.mark.parametrize("fence", [True, False])
def test_a_load_passes_an_earlier_store_of_its_thread_only_without_a_fence(fence):
    """The models' memory is right: two threads each store a word, then load the other's."""

    def thread(me: int):
        def look(s: State) -> None:
            s.saw = put(s.saw, me, load(s, me, "words", 1 - me))

        return in_order(
            [("store", lambda s: store(s, me, "words", 1, me, fence)), ("load", look), ("flushed", flushed(me))]
        )

    def flushed(me: int):
        return lambda s: None if not s.buffers[me] else False

    seen = set()

    def judge(s: State) -> bool | None:
        if s.at[:2] != (END, END):
            return False
        seen.add(s.saw)
        return None

    programs = {"one": thread(0), "other": thread(1), "judge": in_order([("judge", judge)])}
    assert explore(State(words=(0, 0), saw=(0, 0)), programs).flaw is None
    assert seen == {(0, 1), (1, 0), (1, 1)} | (set() if fence else {(0, 0)})


def test_a_lost_wake_up_is_seen():
    programs = {"one": in_order([("wait", lambda s: False)]), "SERVICE": in_order([("end", lambda s: None)])}
    assert explore(State(), programs).flaw == "nobody can go on"


# The code that the models' steps stand for, in the order of the models.
CODE = {
    "mvcc.pyx": {
        "cdef int pin(self)": ["load_seq(&self.current)", "_take_slot(", "_settle("],
        "cdef PinSlot *_take_slot_of(": ["compare_exchange(&at.epoch, UINT64_MAX, epoch)"],
        "cdef inline void _settle(": ["load_seq(&e.current)", "store_seq(&at.epoch, epoch)", "load_seq(&e.current)"],
        "cdef int pin_at(self": [
            "_take_slot(",
            "load_seq(&self.horizon)",
            "load_seq(&self.current)",
            "self.unpin(slot)",
        ],
        "cdef void unpin(self": ["store_release(&at.epoch, UINT64_MAX)"],
        "cdef void advance(self": ["store_seq(&self.current, epoch)"],
        "cdef uint64_t min_active(self)": ["load_seq(&self.current)", "load_seq(&slots[i].epoch)"],
        "cdef uint64_t reclaim_horizon(self)": [
            "self.min_active()",
            "store_seq(&self.horizon, least)",
            "self.min_active()",
        ],
    },
    "store.pyx": {
        "def __enter__(self):\n        self.flight = self.store.enter()\n        try": [
            "epochs.pin()",
            "store.published",
        ],
        "def publish(self": ["publish_rows(epoch)", "self.published = published", "self.epochs.advance("],
        "def reclaim(self": ["try_lock(self)", "self.free_retired(", "hold_lock(self)", "self.free_retired("],
        "cdef Py_ssize_t free_retired(": [
            "reclaim_horizon()",
            "durable < horizon",
            "reclaim_one(horizon",
            "self.allocator.free(address)",
            "drop_lock(self)",
        ],
    },
    "object_table.pyx": {
        "cdef void publish(self": ["store_release(&row.birth", "store_release(&row.word"],
        "cdef void retire(self": ["store_release(&row.retire", "store_release(&row.word"],
        "cdef bint reclaim_one(self": [".retire > horizon", "return False", "self.free_row("],
    },
    "write_set.pyx": {
        "def publish_rows(self": ["lock_with_gil(", "self.publish_all(epoch)", "PyThread_release_lock("],
        "cdef void publish_all(self": ["table.publish(", "table.retire("],
    },
    "mmap_windows.pyx": {
        "cdef inline char *_show(": ["store_seq(windows.base_of(window), at.mapping)"],
        "cdef char *map_window(self": ["self.base_of(window)[0]", "self.at(window).mapping:", "_show(", "_map_file("],
        "cdef int _map_anew(": [
            "at.mapping and at.length < end",
            "_map(windows",
            "Outgrown(at.mapping",
            "store_seq(windows.base_of(window), at.mapping)",
            "store_release(&at.end, end)",
        ],
        "cdef list hide(self": ["store_seq(self.base_of(window), 0)"],
        "cdef int drop(self": [
            "self.mapped_files <= self.budget",
            "self.base_of(window)[0]",
            "at.mapping = 0",
            "self.unmap(",
        ],
    },
    "recycler.pyx": {
        "cdef int one_pass(self": [
            "windows.hide(",
            "windows.find_outgrown()",
            "flights.advance(generation)",
            "min_active() >= generation",
            "windows.drop(hidden) + self.windows.drop_outgrown(outgrown)",
        ]
    },
    "checkpoint_coordinator.py": {
        "def write_group(self": [
            "writer.write(",
            "writer.sync()",
            "self.durable_epoch = last_epoch",
            "store.publish(",
        ],
        "def sync_log(self": ["begin_sync()", "finish_sync(end)", "self.durable_epoch = last_epoch"],
        "def finish_group(self": ["self._expected = self._queue.waiting", "finish_commits("],
        "def submit_commit(": ["self._expected <= 1 and not self._queue.waiting", "carry(", "self._queue.submit("],
        "def _gather(self": ["self._queue.gather(", "self._queue.wait("],
        "def _carry_out(self": [
            "self._gather(",
            "not self._queue.count",
            "self.turn_lock",
            "self._queue.take_now()",
            "self._commit(",
        ],
    },
    "commit_queue.pyx": {
        "def carry(": [
            "carrier.turn_lock.acquire(False)",
            "queue.take_now()",
            "plan([*others, request])",
            "queue.put_back(others)",
            "tell_queued(request)",
            "write_group(group)",
            "finish_group(group)",
            "carrier.turn_lock.release()",
        ],
        "def submit(self": [
            "self.waiting += 1",
            "self.enqueue(request)",
            "tell_queued(request)",
            "outcome_of(request)",
            "self.waiting -= 1",
        ],
        "cdef int enqueue(self": [
            "write_set.queue()",
            "self.last.following = request",
            "0 < self.wanted <= self.count",
            "self.bell.ring()",
        ],
        "def take_now(self": ["requests.append(request)", "self.first = self.last = None"],
        "cdef int put_back(self": ["self.first = request", "self.bell.ring()"],
        "def wait(self": [
            "not self.count and not self.rung",
            "self.wanted = 1",
            "self.clock.get(self.bell, timeout)",
            "self.wanted = 0",
            "self.rung = self.woken = False",
            "self.bell.silence()",
        ],
        "def gather(self": ["self.wanted = expected", "self.rung = self.bell.get(", "self.wanted = 0"],
    },
    "outcome.pyx": {
        "cdef int finish_together(": [
            "if outcome.handles_signals:",
            "PyThread_release_lock(outcome.done)",
            "last.next = outcome",
            "PyThread_release_lock(first.done)",
        ],
        "cdef object wait_for(": [
            "PyErr_CheckSignals()",
            "PyThread_acquire_lock_timed(outcome.done",
            "PyThread_release_lock(outcome.next.done)",
        ],
    },
}


@pytest.mark.parametrize(("file", "function"), [(file, function) for file in CODE for function in CODE[file]])
def test_the_steps_of_the_models_are_those_of_the_code(file, function):
    text = SOURCES[file].read_text(encoding="utf-8")
    begin = text.index(function)
    begin = text.rindex("\n", 0, begin) + 1
    indent = len(text[begin:]) - len(text[begin:].lstrip(" "))
    end = re.compile(rf"\n {{0,{indent}}}(?=[^\s)])").search(text, text.index("\n", begin + len(function)))
    body = text[begin : end.start() if end else len(text)]
    at = 0
    for step in CODE[file][function]:
        assert step in body[at:], f"{function}: {step!r} isn't there, or in another order: do the models still hold?"
        at = body.index(step, at) + len(step)
