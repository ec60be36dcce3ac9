"""When a checkpoint is due: burst, steady, idle, on demand; never too soon, and later after each failure.

Promises (What is on the disk before what):

- when a checkpoint is due:
  all of it.
"""

import pytest
from support.text_pages import ManualClock

from xtree.config import Config
from xtree.persistence.base.config import MIB
from xtree.persistence.commit.checkpoint_policy import FIRST_PAUSE_S, LONGEST_PAUSE_S, CheckpointPolicy, Pause

CONFIG = Config(
    checkpoint_log_bytes=96 * MIB,
    checkpoint_burst_log_bytes=256 * MIB,
    checkpoint_burst_epochs=1000,
    checkpoint_interval_s=90,
    checkpoint_idle_s=45,
    checkpoint_min_interval_s=5,
)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def policy(clock):
    return CheckpointPolicy(CONFIG, clock)


def taken(policy):
    policy.began()
    policy.succeeded()


def test_without_a_commit_nothing_is_ever_due(policy, clock):
    assert policy.next_look(0) is None
    clock.time = 1e6
    assert policy.due(0) is None


def test_a_slowly_growing_log_is_due_at_the_steady_size(policy, clock):
    policy.committed(1)
    clock.time = 40.0  # at 96 MiB in 40 s it will not be 256 MiB after 90 s
    policy.committed(1)
    assert policy.due(96 * MIB - 1) is None
    assert policy.due(96 * MIB) == "steady"


def test_a_fast_growing_log_is_due_at_the_size_of_a_burst(policy, clock):
    policy.committed(1)
    clock.time = 10.0
    policy.committed(1)
    assert policy.large(96 * MIB)
    assert policy.due(96 * MIB) is None
    assert policy.due(256 * MIB - 1) is None
    assert policy.due(256 * MIB) == "burst"


def test_a_burst_that_ends_becomes_a_steady_case_when_its_pace_has_fallen(policy, clock):
    policy.committed(1)
    clock.time = 10.0
    policy.committed(1)
    look = policy.next_look(128 * MIB)
    assert look == pytest.approx(45.0)  # 128 MiB in 45 s are 256 MiB in 90 s
    clock.time = 44.9
    assert policy.due(128 * MIB) is None
    clock.time = look
    assert policy.due(128 * MIB) == "steady"


def test_many_commits_are_a_burst(policy):
    policy.committed(999)
    assert policy.due(0) is None
    policy.committed(1)
    assert policy.large(0)
    assert policy.due(0) == "burst"


def test_a_small_change_is_due_after_the_interval_when_commits_go_on(policy, clock):
    for second in range(90):
        clock.time = float(second)
        policy.committed(1)
        assert policy.due(second) is None
    clock.time = 90.0
    assert policy.due(90) == "steady"


def test_the_interval_begins_with_the_first_commit_that_no_checkpoint_holds(policy, clock):
    policy.committed(1)
    taken(policy)
    clock.time = 1000.0
    policy.committed(1)
    assert policy.due(0) is None
    assert policy.next_look(0) == 1045.0


def test_an_index_that_is_only_read_gets_its_checkpoint_when_idle(policy, clock):
    clock.time = 20.0
    policy.committed(1)
    assert policy.next_look(0) == 65.0
    clock.time = 64.9
    assert policy.due(0) is None
    clock.time = 65.0
    assert policy.due(0) == "idle"
    taken(policy)
    clock.time = 1e6
    assert policy.due(0) is None


def test_two_checkpoints_have_a_least_interval_unless_one_is_demanded(policy, clock):
    policy.committed(1)
    clock.time = 100.0
    taken(policy)
    policy.committed(2000)
    assert policy.due(0) is None
    assert policy.next_look(0) == 105.0
    policy.demand()
    assert policy.due(0) == "demand"
    taken(policy)
    policy.committed(2000)
    clock.time = 105.0
    assert policy.due(0) == "burst"


def test_commits_during_a_checkpoint_count_for_the_next(policy, clock):
    policy.committed(900)
    policy.began()
    clock.time = 30.0
    policy.committed(10)
    policy.succeeded()
    assert policy.epochs == 10
    clock.time = 74.0
    assert policy.due(0) is None
    clock.time = 75.0
    assert policy.due(0) == "idle"


def test_a_failed_checkpoint_is_due_again_after_a_pause_that_doubles(policy, clock):
    policy.committed(2000)
    pauses = []
    for _ in range(9):
        assert policy.due(0) == "burst"
        policy.began()
        policy.failed()
        assert policy.due(0) is None
        pauses.append(policy.next_look(0) - clock.time)
        clock.time = policy.next_look(0)
    assert pauses == [min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(9)]
    taken(policy)
    assert policy.epochs == 0


def test_a_demand_waits_for_the_pause_and_outlives_a_failure(policy, clock):
    policy.demand()
    policy.began()
    policy.failed()
    assert policy.due(0) is None and policy.next_look(0) == FIRST_PAUSE_S
    clock.time = FIRST_PAUSE_S
    assert policy.due(0) == "demand"


def test_whenever_something_is_due_the_next_look_is_not_later_and_the_other_way_round(policy, clock, random):
    log_bytes = 0
    for _ in range(3000):
        clock.time += float(random.exponential(4.0))
        action = random.integers(10)
        if action < 5:
            policy.committed(int(random.integers(1, 30)))
            log_bytes += int(random.integers(8 * MIB))
        elif action == 5:
            policy.demand()
        due, look = policy.due(log_bytes), policy.next_look(log_bytes)
        assert (due is not None) == (look is not None and look <= clock.time), (due, look, clock.time)
        if due:
            policy.began()
            if random.integers(4):
                policy.succeeded()
                log_bytes = 0
            else:
                policy.failed()


def test_a_pause_ends_with_a_success():
    pause = Pause()
    assert pause.until < 0
    pause.failed(10.0)
    pause.failed(10.0)
    assert pause.until == 12.0
    pause.succeeded()
    pause.failed(10.0)
    assert pause.until == 11.0
