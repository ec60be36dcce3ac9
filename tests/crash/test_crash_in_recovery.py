"""A crash at any call inside recovery, with new losses: another recovery finds the same state.

Promises (Nothing acknowledged is lost):

- a crash at any call of a recovery, with damage once more, changes nothing of what is recovered, and what a kill left
  in the cache is not trusted before it is synced:
  test_some_crashes_inside_recovery_change_nothing; all of them: test_every_crash_inside_recovery_changes_nothing.
"""

from __future__ import annotations

import random
import secrets
import sys
from functools import partial

import pytest
from support.crash_runs import Case, Inquiry, cases, count, every_mode, every_workload, firsts, run, sample

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")


@every_mode
@every_workload
def test_some_crashes_inside_recovery_change_nothing(tmp_path, name, mode, tally):
    seed = secrets.randbits(32)
    print("seed", seed)
    rng = random.Random(seed)
    made = run(name, mode, tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    for first in firsts(made.moments, 1, 1, rng):
        inquiry.ask_again(first, tmp_path / "again", lambda moments: sample(moments, 6, rng))
    count(tally, "somewhere in a recovery", inquiry)


@pytest.mark.torture
@pytest.mark.timeout(1800)
@every_mode
@every_workload
def test_every_crash_inside_recovery_changes_nothing(tmp_path, name, mode, tally):
    made = run(name, mode, tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    rng = random.Random(name + mode)
    for first in firsts(made.moments, 4, 2, rng):
        inquiry.ask_again(first, tmp_path / "again", lambda moments: cases(moments, 4))
    count(tally, "everywhere in a recovery", inquiry)


@every_mode
def test_what_only_the_cache_held_is_durable_for_nobody_before_the_recovery_that_found_it_ends(tmp_path, mode, tally):
    made = run("checkpoints", mode, tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    killed = [moment for moment in made.moments if moment.what == "commit.appended"][-1]
    nothing_unsynced = partial(map, lambda moment: Case(moment, 0, 512))
    inquiry.ask_again(Case(killed, None), tmp_path / "again", nothing_unsynced)
    count(tally, "somewhere in a recovery", inquiry)


def test_an_epoch_that_the_superblock_names_only_in_the_cache_has_no_checkpoint_before_it_is_on_the_disk(
    tmp_path, tally
):
    made = run("checkpoints", "strict", tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    committed = [moment.number for moment in made.moments if moment.what == "commit.superblock_synced"][-1]
    killed = [moment for moment in made.moments[:committed] if moment.what == "superblock.written"][-1]
    assert killed.handed_out > killed.durable
    inquiry.ask_again(Case(killed, None), tmp_path / "again", lambda moments: cases(moments, 4))
    count(tally, "somewhere in a recovery", inquiry)
