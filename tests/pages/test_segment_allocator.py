"""The segment allocator: each slot is given out once, lowest first, and can come back; growth may fail at any time.

Promises (One writer, many readers):

- a closed data file ends behind its highest slot in use, whatever their number:
  test_top_is_right_for_every_number_of_slots_whichever_of_them_is_in_use,
  test_data_files.py::test_files_of_an_index_that_is_emptied_and_closed_shrink_to_what_is_in_use.
"""

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xtree.errors import CorruptionError
from xtree.persistence.base.memory import fail_allocation
from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.segment_allocator import SegmentAllocator
from xtree.persistence.store.memory_growth import MemoryGrowth

KIB = 1024
HEADER = 4096


def class_bytes(size_class):
    return 4096 << size_class


def split(address):
    return address >> 48, address & (1 << 48) - 1


class FileGrowth:
    """Windows that begin with only a header and grow up to a limit, on a disk that can be full."""

    def __init__(self, limit=1 << 30, first_usable=0):
        self.limit = limit
        self.first_usable = first_usable
        self.usable = {}
        self.classes = {}
        self.asked = []
        self.full = False
        self.surplus = 0

    def new_window(self, size_class, spends_reserve):
        self._refuse_when_full()
        window = len(self.usable)
        self.usable[window] = HEADER + self.first_usable
        self.classes[window] = size_class
        return window, HEADER, self.usable[window], self.limit

    def extend(self, window, wanted_bytes, spends_reserve):
        self._refuse_when_full()
        self.asked.append((window, self.usable[window], wanted_bytes))
        self.usable[window] = min(wanted_bytes + self.surplus, self.limit)
        return self.usable[window]

    def _refuse_when_full(self):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def no_failure_is_left_planned():
    yield
    fail_allocation(0)


def test_slots_are_given_out_lowest_first():
    allocator = SegmentAllocator(FileGrowth())
    addresses = [allocator.allocate_slot(0) for _ in range(1000)]
    assert addresses == [HEADER + i * 4096 for i in range(1000)]
    for address in (addresses[700], addresses[64], addresses[63], addresses[999]):
        allocator.free_slot(address)
    assert [allocator.allocate_slot(0) for _ in range(5)] == [HEADER + i * 4096 for i in (63, 64, 700, 999, 1000)]
    allocator.check()


def test_a_lower_window_is_filled_before_a_higher_one():
    allocator = SegmentAllocator(FileGrowth(limit=HEADER + 70 * 4096))
    addresses = [allocator.allocate_slot(0) for _ in range(300)]
    assert [split(address)[0] for address in addresses] == [i // 70 for i in range(300)]
    for address in (addresses[250], addresses[80], addresses[5]):
        allocator.free_slot(address)
    assert [allocator.allocate_slot(0) for _ in range(3)] == [addresses[5], addresses[80], addresses[250]]
    allocator.check()


def test_windows_hold_slots_of_one_class_each():
    growth = FileGrowth()
    allocator = SegmentAllocator(growth)
    for i in range(700):
        window, offset = split(allocator.allocate_slot(i % 7))
        assert growth.classes[window] == i % 7
        assert (offset - HEADER) % class_bytes(i % 7) == 0
        assert offset + class_bytes(i % 7) <= growth.usable[window]
    assert allocator.slots_used == 700
    allocator.check()


def test_files_grow_gently_and_in_steps_that_rise_to_16_mib():
    growth = FileGrowth()
    allocator = SegmentAllocator(growth)
    for _ in range(100_000):
        allocator.allocate_slot(0)
    steps = [wanted - before for _, before, wanted in growth.asked]
    assert steps[0] == 64 * KIB
    assert steps == sorted(steps) and max(steps) == 16 * KIB * KIB
    assert all(step <= max(64 * KIB, before // 8) for (_, before, _), step in zip(growth.asked, steps))


def test_a_window_is_extended_to_its_limit_and_then_a_new_one_is_asked_for():
    growth = FileGrowth(limit=HEADER + 40 * 4096 + 4095)
    allocator = SegmentAllocator(growth)
    for _ in range(41):
        allocator.allocate_slot(0)
    assert [window for window, _, _ in growth.asked] == [0, 0, 0, 1]
    assert growth.asked[2][2] == HEADER + 40 * 4096
    assert sorted(growth.usable) == [0, 1]


def test_room_that_growth_gives_beyond_what_was_asked_is_used():
    growth = FileGrowth(limit=HEADER + 1000 * 4096)
    growth.surplus = 10**9
    allocator = SegmentAllocator(growth)
    for _ in range(1000):
        allocator.allocate_slot(0)
    assert len(growth.asked) == 1
    allocator.check()


def test_growth_that_gives_no_room_is_an_error():
    growth = FileGrowth()
    allocator = SegmentAllocator(growth)
    growth.extend = lambda window, wanted_bytes, spends_reserve: HEADER
    with pytest.raises(RuntimeError, match="no room to grow"):
        allocator.allocate_slot(0)
    allocator.check()


def test_a_full_disk_is_an_os_error_and_leaves_the_allocator_intact():
    growth = FileGrowth()
    allocator = SegmentAllocator(growth)
    growth.full = True
    with pytest.raises(OSError) as failure:
        allocator.allocate_slot(0)
    assert failure.value.errno == errno.ENOSPC
    growth.full = False
    addresses = [allocator.allocate_slot(0) for _ in range(16)]
    growth.full = True
    for _ in range(3):
        with pytest.raises(OSError):
            allocator.allocate_slot(0)
    allocator.check()
    allocator.free_slot(addresses[3])
    assert allocator.allocate_slot(0) == addresses[3]
    growth.full = False
    assert allocator.allocate_slot(0) == HEADER + 16 * 4096
    allocator.check()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_window_that_no_memory_could_be_found_for_is_attached_later(nth):
    growth = FileGrowth(first_usable=8 * 4096)
    allocator = SegmentAllocator(growth)
    fail_allocation(nth)
    with pytest.raises(MemoryError):
        allocator.allocate_slot(0)
    allocator.check()
    assert allocator.slots_used == 0
    assert allocator.allocate_slot(0) == HEADER
    assert list(growth.usable) == [0]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_table_that_gets_no_memory_is_a_memory_error(nth):
    allocator = SegmentAllocator(FileGrowth())
    fail_allocation(nth)
    with pytest.raises(MemoryError):
        allocator.allocate_slot(0)
    allocator.check()
    allocator.allocate_slot(0)
    allocator.check()


def test_a_slot_that_is_not_in_use_cannot_be_freed():
    allocator = SegmentAllocator(FileGrowth())
    address = allocator.allocate_slot(1)
    allocator.free_slot(address)
    for wrong in (address, address + 4096, 0, HEADER + (1 << 29), 5 << 48, 2**64 - 1):
        with pytest.raises(RuntimeError, match="no slot in use"):
            allocator.free_slot(wrong)
        assert not allocator.is_used(wrong)
    allocator.check()
    assert allocator.slots_used == 0


@pytest.mark.parametrize(
    "size_class, address, why",
    [
        (1, HEADER + 4096, "misaligned or outside"),
        (1, 4095, "misaligned or outside"),
        (1, HEADER + 100 * 8192, "misaligned or outside"),
        (1, 1 << 48 | HEADER, "misaligned or outside"),
        (2, HEADER + 8192, "another class"),
        (1, HEADER, "already in use"),
    ],
)
def test_an_address_from_a_row_that_cannot_be_a_free_slot_is_corruption(size_class, address, why):
    allocator = SegmentAllocator(FileGrowth())
    allocator.attach(0, 1, HEADER, HEADER + 100 * 8192, 1 << 30)
    allocator.occupy_slot(1, HEADER)
    with pytest.raises(CorruptionError, match=why):
        allocator.occupy_slot(size_class, address)
    allocator.check()
    assert allocator.slots_used == 1


def test_an_allocator_rebuilt_from_rows_gives_out_none_of_their_slots():
    seed = random.randrange(2**32)
    print("seed", seed)
    growth = FileGrowth()
    growth.usable = {0: HEADER + 500 * 4096}
    held = {HEADER + i * 4096 for i in random.Random(seed).sample(range(500), 300)}
    allocator = SegmentAllocator(growth)
    allocator.attach(0, 0, HEADER, growth.usable[0], growth.limit)
    for address in held:
        allocator.occupy_slot(0, address)
    allocator.check()
    given = [allocator.allocate_slot(0) for _ in range(300)]
    assert held.isdisjoint(given) and len(set(given)) == 300
    assert set(given[:200]) == {HEADER + i * 4096 for i in range(500)} - held


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 7, 0, 10, 10),
        (0, -1, 0, 10, 10),
        (0, 0, 11, 10, 12),
        (0, 0, 0, 12, 11),
        (65536, 0, 0, 0, 0),
        (3, 0, 0, 0, 0),
    ],
)
def test_what_cannot_be_a_window_is_not_attached(arguments):
    allocator = SegmentAllocator(FileGrowth())
    allocator.attach(3, 0, 0, 4096, 4096)
    with pytest.raises(ValueError):
        allocator.attach(*arguments)
    allocator.check()
    assert allocator.allocate_slot(0) == 3 << 48


def test_an_unknown_size_class_is_refused():
    for size_class in (-1, 7):
        with pytest.raises(ValueError, match="size class"):
            SegmentAllocator(FileGrowth()).allocate_slot(size_class)


def test_top_is_the_end_of_the_highest_slot_in_use():
    allocator = SegmentAllocator(FileGrowth())
    addresses = [allocator.allocate_slot(2) for _ in range(200)]
    assert allocator.top_bytes(0) == addresses[199] + class_bytes(2)
    for address in addresses[130:]:
        allocator.free_slot(address)
    assert allocator.top_bytes(0) == addresses[129] + class_bytes(2)
    for address in addresses[1:130]:
        allocator.free_slot(address)
    assert allocator.top_bytes(0) == HEADER + class_bytes(2)
    allocator.free_slot(addresses[0])
    assert allocator.top_bytes(0) == HEADER
    assert allocator.top_bytes(1) == 0


# From less than one to three words of slots, with every remainder modulo 64.
NUMBERS_OF_SLOTS = range(1, 193)


def with_slots_in_use(slots, used, size_class=0, limit=None):
    """An allocator with one window of so many slots, of which those given are in use."""
    allocator = SegmentAllocator(FileGrowth())
    step = class_bytes(size_class)
    allocator.attach(0, size_class, HEADER, HEADER + slots * step, HEADER + (limit or slots) * step)
    for slot in used:
        allocator.occupy_slot(size_class, HEADER + slot * step)
    return allocator


@pytest.mark.parametrize("size_class", range(7))
def test_top_is_right_for_every_number_of_slots_whichever_of_them_is_in_use(size_class):
    step = class_bytes(size_class)
    for slots in NUMBERS_OF_SLOTS:
        allocator = with_slots_in_use(slots, [], size_class)
        assert allocator.top_bytes(0) == HEADER
        for slot in range(slots) if size_class == 0 else {0, slots // 2, slots - 1}:
            allocator.occupy_slot(size_class, HEADER + slot * step)
            assert allocator.top_bytes(0) == HEADER + (slot + 1) * step
            allocator.free_slot(HEADER + slot * step)
            assert allocator.top_bytes(0) == HEADER


@pytest.mark.parametrize("slots", [1, 63, 64, 65, 100, 127, 128, 129, 192])
def test_top_is_right_after_frees_in_any_order(slots, random):
    orders = [range(slots), range(slots - 1, -1, -1), *(random.permutation(slots).tolist() for _ in range(8))]
    for order in orders:
        used = set(range(slots))
        allocator = with_slots_in_use(slots, used)
        for slot in order:
            allocator.free_slot(HEADER + slot * 4096)
            used.discard(slot)
            assert allocator.top_bytes(0) == HEADER + (max(used, default=-1) + 1) * 4096
        allocator.check()


def test_top_is_right_while_a_window_grows_slot_by_slot():
    growth = FileGrowth(limit=HEADER + 200 * 4096)
    growth.extend = lambda window, wanted_bytes, spends_reserve: next(usable)
    usable = iter(range(HEADER + 4096, growth.limit + 1, 4096))
    allocator = SegmentAllocator(growth)
    first = allocator.allocate_slot(0)
    for slots in range(2, 201):
        last = allocator.allocate_slot(0)
        assert allocator.top_bytes(0) == HEADER + slots * 4096
        for slot in range(1, slots - 1):
            allocator.free_slot(first + slot * 4096)
        allocator.free_slot(last)
        assert allocator.top_bytes(0) == HEADER + 4096
        for _ in range(1, slots):
            allocator.allocate_slot(0)
    allocator.check()


def test_top_is_right_across_segments_and_groups():
    slots = 64**3 + 70
    for used in (0, 63, 64, 64**2 - 1, 64**2, 64**3 - 1, 64**3, slots - 1):
        allocator = with_slots_in_use(slots, {0, used}, limit=slots + 1)
        assert allocator.top_bytes(0) == HEADER + (used + 1) * 4096


def test_statistics_count_slots_and_runs_of_free_ones():
    allocator = SegmentAllocator(FileGrowth(first_usable=200 * 4096))
    addresses = [allocator.allocate_slot(0) for _ in range(200)]
    for i in (0, 1, 5, 63, 64, 100, 199):
        allocator.free_slot(addresses[i])
    assert allocator.stats()[0] == {
        "windows": 1, "slots": 200, "used": 193, "free": 7, "bytes": 200 * 4096, "fill": 193 / 200, "free_runs": 5,
        "longest_free_run": 2,
    }
    nothing = {"windows": 0, "slots": 0, "used": 0, "free": 0, "bytes": 0, "free_runs": 0, "longest_free_run": 0}
    assert allocator.stats()[3] == {**nothing, "fill": 0.0}


@given(st.sets(st.integers(0, 199)))
def test_runs_of_free_slots_are_counted_across_words(free):
    allocator = SegmentAllocator(FileGrowth())
    allocator.attach(0, 0, 0, 200 * 4096, 200 * 4096)
    for _ in range(200):
        allocator.allocate_slot(0)
    for i in free:
        allocator.free_slot(i * 4096)
    line = "".join("f" if i in free else "u" for i in range(200))
    runs = [len(run) for run in line.split("u") if run]
    stats = allocator.stats()[0]
    assert (stats["free_runs"], stats["longest_free_run"]) == (len(runs), max(runs, default=0))
    assert (stats["free"], stats["fill"]) == (len(free), (200 - len(free)) / 200)


def test_an_exercise_leaves_the_allocator_as_it_was():
    growth = FileGrowth()
    allocator = SegmentAllocator(growth)
    kept = [allocator.allocate_slot(0) for _ in range(10)]
    allocator.exercise(0, 5000)
    assert allocator.stats()[0]["slots"] >= 5010
    allocator.check()
    assert allocator.slots_used == 10 and all(map(allocator.is_used, kept))
    growth.full = True
    with pytest.raises(OSError):
        allocator.exercise(3, 10**6)
    allocator.check()
    assert allocator.slots_used == 10
    with pytest.raises(ValueError, match="can't be allocated"):
        allocator.exercise(9, 1)


def test_memory_windows_double_and_hold_at_least_four_slots():
    windows = Windows()
    allocator = SegmentAllocator(MemoryGrowth(windows))
    for _ in range(4 + 4 + 8 + 16 + 1):
        allocator.allocate_slot(0)
    assert [windows.bytes_of(window) for window in range(5)] == [size * KIB for size in (16, 16, 32, 64, 128)]
    window, offset = split(allocator.allocate_slot(6))
    assert (windows.bytes_of(window), offset) == (1024 * KIB, 0)
    allocator.check()


def test_more_than_one_group_of_segments_works():
    slots = 64**3 + 1000
    allocator = SegmentAllocator(FileGrowth())
    allocator.attach(0, 0, 0, slots * 4096, slots * 4096)
    assert all(allocator.allocate_slot(0) == i * 4096 for i in range(slots))
    for i in (slots - 1, 64**3, 64**3 - 1):
        allocator.free_slot(i * 4096)
    allocator.check()
    assert [allocator.allocate_slot(0) // 4096 for _ in range(3)] == [64**3 - 1, 64**3, slots - 1]


class AllocatorModel(RuleBasedStateMachine):
    """The allocator against a set of addresses, on a disk that is full now and then."""

    @initialize(limit=st.integers(1, 200), surplus=st.sampled_from([0, 5000, 10**6]))
    def begin(self, limit, surplus):
        self.growth = FileGrowth(limit=HEADER + limit * 32 * KIB)
        self.growth.surplus = surplus
        self.allocator = SegmentAllocator(self.growth)
        self.used = {0: set(), 1: set(), 3: set()}

    def lowest_free(self, size_class):
        step = class_bytes(size_class)
        for window in sorted(w for w, c in self.growth.classes.items() if c == size_class):
            for offset in range(HEADER, min(self.growth.usable[window], self.growth.limit) - step + 1, step):
                if window << 48 | offset not in self.used[size_class]:
                    return window << 48 | offset
        return None

    @rule(size_class=st.sampled_from([0, 1, 3]), times=st.integers(1, 70))
    def allocate(self, size_class, times):
        for _ in range(times):
            expected = self.lowest_free(size_class)
            if expected is None and self.growth.full:
                with pytest.raises(OSError):
                    self.allocator.allocate_slot(size_class)
                return
            address = self.allocator.allocate_slot(size_class)
            assert address == (self.lowest_free(size_class) if expected is None else expected)
            self.used[size_class].add(address)

    @precondition(lambda self: any(self.used.values()))
    @rule(data=st.data(), count=st.integers(1, 40))
    def free(self, data, count):
        size_class = data.draw(st.sampled_from([c for c in self.used if self.used[c]]))
        chosen = sorted(self.used[size_class])
        start = data.draw(st.integers(0, len(chosen) - 1))
        for address in chosen[start : start + count]:
            self.allocator.free_slot(address)
            self.used[size_class].discard(address)

    @rule(full=st.booleans())
    def disk(self, full):
        self.growth.full = full

    @invariant()
    def agrees(self):
        if hasattr(self, "allocator"):
            self.allocator.check()
            assert self.allocator.slots_used == sum(map(len, self.used.values()))
            for size_class, addresses in self.used.items():
                assert self.allocator.stats()[size_class]["used"] == len(addresses)
                assert all(map(self.allocator.is_used, addresses))
            for window, size_class in self.growth.classes.items():
                ends = [split(a)[1] + class_bytes(size_class) for a in self.used[size_class] if split(a)[0] == window]
                assert self.allocator.top_bytes(window) == max(ends, default=HEADER)


TestAllocatorModel = AllocatorModel.TestCase
TestAllocatorModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
