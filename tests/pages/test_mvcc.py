"""Epochs and pins: what is pinned is never below what may be reclaimed.

Promises (One writer, many readers):

- no slot is reused under a reader: millions of pins a run, in loops without the GIL, beside a writer that reuses
  slots at once:
  test_no_thread_ever_finds_its_pinned_epoch_reclaimed, test_store.py::test_slots_come_back_once_no_pin_needs_them.
- a pin of an old epoch is refused or finds its pages, and none is refused that another pin protects:
  test_a_pin_of_an_old_epoch_is_refused_or_finds_its_pages.
- thousands of readers; slow ones are named:
  test_five_thousand_pins_from_many_threads_are_all_seen, test_statistics_name_slow_readers_and_the_oldest_pins_epoch.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtree.errors import CapacityError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.pages.mvcc import Epochs
from xtree.persistence.store.memory_store import MemoryStore
from xtree.tools.probes.loops import Turnover

pytestmark = pytest.mark.threads

EPOCHS = 60_000  # in a turnover
SLOTS_TAKEN = 280  # for pins, in a crowded one: all but eight of two blocks


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


def test_without_pins_everything_retired_up_to_now_is_reclaimable():
    epochs = Epochs()
    epochs.advance_to(7)
    assert epochs.oldest() == epochs.reclaimable() == 7


def test_the_oldest_pin_holds_the_horizon_until_it_is_released():
    epochs = Epochs()
    epochs.advance_to(3)
    old = epochs.pin_epoch()
    epochs.advance_to(9)
    new = epochs.pin_epoch()
    assert (epochs.epoch_of(old), epochs.epoch_of(new)) == (3, 9)
    assert epochs.reclaimable() == 3
    epochs.release(old)
    epochs.advance_to(12)
    assert epochs.reclaimable() == 9
    epochs.release(new)
    assert epochs.reclaimable() == 12


def test_a_pin_below_the_horizon_is_refused_and_leaves_nothing_pinned():
    epochs = Epochs()
    epochs.advance_to(5)
    epochs.reclaimable()
    with pytest.raises(ValueError, match="epoch 4 can't be pinned: expected 5 to 5"):
        epochs.pin_epoch(4)
    assert epochs.stats()["pins"] == 0 and epochs.oldest() == 5


def test_an_epoch_that_is_not_there_yet_cannot_be_pinned():
    epochs = Epochs()
    epochs.advance_to(5)
    with pytest.raises(ValueError, match="can't be pinned"):
        epochs.pin_epoch(6)


def test_an_epoch_that_another_pin_protects_can_be_pinned_again():
    epochs = Epochs()
    epochs.advance_to(4)
    first = epochs.pin_epoch()
    epochs.advance_to(8)
    assert epochs.reclaimable() == 4
    second = epochs.pin_epoch(4)
    epochs.release(first)
    assert epochs.reclaimable() == 4
    epochs.release(second)
    assert epochs.reclaimable() == 8


def test_epochs_never_go_back():
    epochs = Epochs()
    epochs.advance_to(2)
    with pytest.raises(ValueError, match="expected 2 or a later one"):
        epochs.advance_to(1)
    assert epochs.stats()["current"] == 2


@pytest.mark.parametrize("slot", [-1, 0, 255, 256, 2**20])
def test_what_is_no_pin_cannot_be_released(slot):
    epochs = Epochs()
    with pytest.raises(ValueError, match="no pin"):
        epochs.release(slot)
    taken = epochs.pin_epoch()
    epochs.release(taken)
    with pytest.raises(ValueError, match="no pin"):
        epochs.release(taken)


def test_thousands_of_pins_are_distinct_and_their_slots_are_used_again():
    epochs = Epochs()
    pins = [epochs.pin_epoch() for _ in range(3000)]
    assert len(set(pins)) == 3000
    slots = epochs.stats()["slots"]
    assert epochs.stats()["pins"] == 3000 and slots == 32 + 12 * 256
    for pin in pins[100:200]:
        epochs.release(pin)
    again = [epochs.pin_epoch() for _ in range(100)]
    assert len(set(pins[:100] + again + pins[200:])) == 3000
    for pin in pins[:100] + again + pins[200:]:
        epochs.release(pin)
    assert epochs.stats()["pins"] == 0 and epochs.stats()["slots"] == slots


def test_a_million_pins_fit_and_one_more_is_refused():
    epochs = Epochs()
    pins = {epochs.pin_epoch() for _ in range(32 + 4095 * 256)}
    assert len(pins) == epochs.stats()["pins"] == epochs.stats()["slots"] == 1048352
    with pytest.raises(CapacityError, match="all 1048352 pins"):
        epochs.pin_epoch()
    epochs.release(12345)
    assert epochs.pin_epoch() == 12345
    for missing in (32, 255, 2**20, -1):
        with pytest.raises(ValueError, match="no pin"):
            epochs.epoch_of(missing)


@pytest.mark.parametrize(("room", "nth"), [(32, 1), (32 + 256, 1), (32 + 15 * 256, 1), (32 + 15 * 256, 2)])
def test_a_failed_allocation_refuses_the_pin_only(room, nth):
    epochs = Epochs()
    pins = [epochs.pin_epoch() for _ in range(room)]
    fail_allocation(nth)
    with pytest.raises(MemoryError) as failure:
        epochs.pin_epoch()
    assert not isinstance(failure.value, CapacityError)
    assert epochs.stats()["pins"] == room
    pins.append(epochs.pin_epoch())
    assert len(set(pins)) == room + 1


def test_statistics_tell_how_far_the_oldest_pin_lags():
    epochs = Epochs()
    epochs.advance_to(10)
    epochs.pin_epoch()
    epochs.advance_to(25)
    stats = epochs.stats()
    assert (stats["pins"], stats["lag"], stats["current"]) == (1, 15, 25)
    assert stats["oldest_pin_seconds"] >= 0


def test_statistics_name_slow_readers_and_the_oldest_pins_epoch():
    epochs = Epochs(slow_reader_s=0)
    assert epochs.stats()["slow_pins"] == 0
    assert epochs.stats()["oldest_pin_epoch"] is None and epochs.stats()["oldest_pin_seconds"] == 0
    epochs.advance_to(4)
    old = epochs.pin_epoch()
    began = epochs.stats()["oldest_pin_seconds"]
    while epochs.stats()["oldest_pin_seconds"] == began:  # the clock is coarse
        pass
    epochs.advance_to(9)
    young = epochs.pin_epoch()
    stats = epochs.stats()
    assert stats["oldest_pin_epoch"] == 4 and stats["slow_pins"] >= 1 and stats["oldest_pin_seconds"] > began
    epochs.release(old)
    assert epochs.stats()["oldest_pin_epoch"] == 9
    epochs.release(young)
    patient = Epochs(slow_reader_s=3600)
    patient.pin_epoch()
    assert patient.stats()["slow_pins"] == 0


def test_five_thousand_pins_from_many_threads_are_all_seen():
    epochs = Epochs()
    epochs.advance_to(1)
    pins, lock = [], threading.Lock()
    ready, go = threading.Barrier(51), threading.Event()

    def pin_many():
        mine = [epochs.pin_epoch() for _ in range(100)]
        with lock:
            pins.extend(mine)
        ready.wait()
        go.wait()
        for slot in mine:
            epochs.release(slot)

    threads = [threading.Thread(target=pin_many) for _ in range(50)]
    for thread in threads:
        thread.start()
    ready.wait()
    epochs.advance_to(100)
    stats = epochs.stats()
    assert (len(set(pins)), stats["pins"], stats["lag"]) == (5000, 5000, 99)
    assert epochs.reclaimable() == 1
    go.set()
    for thread in threads:
        thread.join()
    assert epochs.stats()["pins"] == 0 and epochs.reclaimable() == 100


@pytest.mark.parametrize("old", [0, 255, 256, 600])
def test_a_pin_counts_in_whichever_block_it_is(old):
    epochs = Epochs()
    pins = [epochs.pin_epoch() for _ in range(old + 1)]
    epochs.advance_to(5)
    pins += [epochs.pin_epoch() for _ in range(old, 900)]
    for number, pin in enumerate(pins):
        if number < old:
            epochs.release(pin)
    assert epochs.oldest() == epochs.reclaimable() == 0
    while epochs.stats()["pins"] < epochs.stats()["slots"]:  # every block is full
        epochs.pin_epoch()
    epochs.pin_epoch()
    assert epochs.oldest() == epochs.reclaimable() == 0
    epochs.release(pins[old])
    assert epochs.oldest() == epochs.reclaimable() == 5


def test_only_the_sole_pin_of_a_thread_is_renewed():
    epochs = Epochs(timed=False)
    epochs.renew_own()
    first = epochs.pin_epoch()
    epochs.advance_to(3)
    other = []
    thread = threading.Thread(target=lambda: other.append(epochs.pin_epoch()))
    thread.start()
    thread.join()
    epochs.advance_to(5)
    epochs.renew_own()
    assert (epochs.epoch_of(first), epochs.epoch_of(other[0])) == (5, 3)
    second = epochs.pin_epoch()
    epochs.advance_to(8)
    epochs.renew_own()
    assert (epochs.epoch_of(first), epochs.epoch_of(second)) == (5, 5)
    epochs.release(second)
    epochs.renew_own()
    assert epochs.epoch_of(first) == 8
    assert "oldest_pin_seconds" not in epochs.stats()


@given(st.lists(st.one_of(st.just("pin"), st.just("advance"), st.integers(0, 30)), max_size=80))
def test_the_horizon_is_the_least_pin_or_the_current_epoch(steps):
    epochs, current, pins = Epochs(), 0, []
    for step in steps:
        if step == "pin":
            pins.append((epochs.pin_epoch(), current))
        elif step == "advance":
            current += 1
            epochs.advance_to(current)
        elif pins:
            slot, epoch = pins.pop(step % len(pins))
            assert epochs.epoch_of(slot) == epoch
            epochs.release(slot)
        assert epochs.reclaimable() == epochs.oldest() == min([epoch for _, epoch in pins], default=current)


class Turned:
    """A turnover that has ended, with what its readers returned."""

    def __init__(self, crowded, alone, **readers):
        """crowded, alone: see Turnover. readers: a method's name and its argument, by the reader's name."""
        self.store = MemoryStore()
        turnover = Turnover(self.store, EPOCHS, crowded)
        work = [(turnover.write, alone)] + ([] if alone else [(turnover.reclaim,)])
        work += [(getattr(turnover, method), argument) for method, argument in readers.values()]
        with ThreadPoolExecutor(len(work)) as threads:
            running = [threads.submit(*call) for call in work]
        returned = [future.result() for future in running]
        self.found = dict(zip(readers, returned[-len(readers) :], strict=True))
        self.went = turnover.empty()
        self.pins_left = self.store.epochs.stats()["pins"] - (SLOTS_TAKEN if crowded else 0)

    def assert_all_went(self):
        """Asserts that every page was freed once, and that nothing is pinned."""
        store = self.store
        store.table.check()
        store.allocator.check()
        assert self.went == EPOCHS + 1
        assert (store.allocator.slots_used, len(store.table), store.table.retired, self.pins_left) == (0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held", "crowded", "alone"),
    [(1, True, True), (1, False, True), (3, True, True), (1, True, False), (3, True, False), (300, False, False)],
)
def test_no_thread_ever_finds_its_pinned_epoch_reclaimed(held, crowded, alone, tally):
    """Pins in loops without the GIL, beside a writer that reclaims, or beside a writer and a reclaimer. 300 pins at a
    time take more than one block."""
    others = {"other": ("read", held)} if held > 1 else {}
    turned = Turned(crowded, alone, one=("read", held), **others)
    pins, flaws = map(sum, zip(*turned.found.values()))
    assert flaws == 0
    turned.assert_all_went()
    assert turned.store.epochs.stats()["slots"] <= (2048 if held == 300 else 32 + 256)  # the first block, and one
    tally("pins beside a writer without the GIL", pins)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("delay", "crowded"), [(0, True), (40, True), (40, False), (400, False)])
def test_a_pin_of_an_old_epoch_is_refused_or_finds_its_pages(delay, crowded, alone, tally):
    """Pins in loops without the GIL, at the horizon as it moves. No epoch is refused that another pin protects.

    There is no other reader: its pin would hold the horizon while it waits for a processor.
    """
    turned = Turned(crowded, alone, old=("read_old", delay))
    pins, refused, flaws = turned.found["old"]
    assert flaws == 0
    assert refused < pins
    turned.assert_all_went()
    tally("pins of old epochs beside a writer without the GIL", pins)
