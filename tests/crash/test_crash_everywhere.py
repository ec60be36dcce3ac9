"""A crash at any call and any named point of a workload breaks no promise, whatever it leaves of what wasn't synced.

Promises (Nothing acknowledged is lost):

- the same for fifteen workloads through the public API, crashed at each call and named point, with unsynced sectors
  kept, lost, torn or turned into garbage, in every mode; the index then takes more writes, and epochs go on:
  test_some_crashes_of_every_workload_keep_what_was_promised; all of them:
  test_every_crash_of_every_workload_keeps_what_was_promised.
"""

from __future__ import annotations

import random
import secrets
import sys

import pytest
from support.crash_runs import Inquiry, cases, count, every_mode, every_workload, run, sample
from support.text_pages import MODES
from support.workloads import WORKLOADS, Stage

from xtree.persistence.base.crash_points import CRASH_POINTS

SEEDS = 10  # ways in which a power loss turns out, for each sector size
SAMPLE = 30

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="removes files that are open")


@pytest.mark.slow
@every_mode
@every_workload
def test_some_crashes_of_every_workload_keep_what_was_promised(tmp_path, name, mode, tally):
    seed = secrets.randbits(32)
    print("seed", seed)
    made = run(name, mode, tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    for case in sample(made.moments, SAMPLE, random.Random(seed)):
        inquiry.ask(case)
    count(tally, "somewhere in a workload", inquiry)


@pytest.mark.torture
@pytest.mark.timeout(1800)
@every_mode
@every_workload
def test_every_crash_of_every_workload_keeps_what_was_promised(tmp_path, name, mode, tally):
    made = run(name, mode, tmp_path / "run")
    inquiry = Inquiry(made, tmp_path / "image")
    for case in cases(made.moments, SEEDS):
        inquiry.ask(case)
    tally("moments of workloads crashed at", len(made.moments))
    count(tally, "everywhere in a workload", inquiry)


def test_the_workloads_reach_every_named_point(tmp_path):
    reached = {moment.what for name in ("backup", "rotation", "creation") for mode in MODES
               for moment in run(name, mode, tmp_path / "run").moments}  # fmt: skip
    assert {point for point in CRASH_POINTS if not point.startswith("recovery.")} <= reached


def test_the_workloads_do_what_they_are_named_after(tmp_path):
    ended = {}
    for name in ("supernodes", "deletes", "rotation", "inserts with splits"):
        stage = Stage(tmp_path / name, WORKLOADS[name], "balanced")
        stage.root.mkdir()
        stage.open()
        heights, supernodes = set(), 0
        for number in range(len(WORKLOADS[name].steps)):
            stage.perform(number)
            for tree in map(stage.runtime.tree, stage.runtime.trees()):
                heights.add(tree.height)
                supernodes = max(supernodes, tree.stats()["supernodes"])
        ended[name] = heights, supernodes, stage.runtime.stats()["coordinator"], tree.height
        stage.runtime.close()
    assert ended["supernodes"][1] > 0
    assert max(ended["deletes"][0]) > ended["deletes"][3]
    assert ended["rotation"][2]["logs_rotated"] > 3 and ended["rotation"][2]["logs_collected"] > 3
    assert max(ended["inserts with splits"][0]) > 1
