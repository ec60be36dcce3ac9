"""The soak finds nothing wrong in a few seconds, and finds planted errors. `make soak` runs it for an hour.

Promises (Nothing acknowledged is lost):

- whatever is done for hours, in changing modes and through kills, the index is what the model says:
  `make soak`; seconds of it: test_a_few_rounds_with_kills_in_every_mode_find_nothing_wrong.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import xtree
from xtree.tools.soak import run
from xtree.tools.soak.model import History, SoakError, comet_batch, comet_step, comets_after, lanes
from xtree.tools.soak.run import Plan, Round, run_soak
from xtree.tools.soak.work import CONFIG, TREES, WRITERS, Model, Work

KEEP = 6


@pytest.fixture
def model(tmp_path):
    """A model, and an open runtime in its first state."""
    made = Model(seed=3, keep=KEEP)
    with xtree.Runtime(tmp_path / "index", config=xtree.Config(**CONFIG)) as runtime:
        made.create(runtime)
        yield made, runtime


@pytest.mark.slow
def test_a_few_rounds_with_kills_in_every_mode_find_nothing_wrong(tmp_path):
    said: list[str] = []
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    plan = Plan(minutes=0.1, round_seconds=1.0, snapshot_seconds=2.0, keep=KEEP, seed=seed)
    print("seed", plan.seed)
    result = run_soak(plan, tmp_path, said.append)
    assert result["ok"], result["problems"]
    assert json.loads(json.dumps(result))["plan"]["keep"] == KEEP
    assert {round_["killed"] for round_ in result["rounds"]} == {False, True}
    assert sum(round_["steps"] for round_ in result["rounds"]) > 0
    assert all(round_["checks"] > 0 for round_ in result["rounds"][:-1] if not round_["killed"])
    assert said[-1].endswith("fine")
    assert len(said) == len(result["rounds"]) + 1


def test_a_history_says_after_which_step_it_is_seen():
    history = History(1, "tree", 1, 3, KEEP)
    for step in range(history.first, history.first + 12):
        ids, boxes = history.after(step)
        assert history.step_of(ids, boxes) == step
        assert len(set(ids.tolist())) == len(ids)
    middle = len(ids) // 2
    with pytest.raises(SoakError, match="1 missing"):
        history.step_of(np.delete(ids, middle), np.delete(boxes, middle, axis=0))
    with pytest.raises(SoakError, match="in no state"):
        history.step_of(ids, np.vstack([boxes[1:], boxes[:1]]))


def test_histories_of_one_tree_are_told_apart():
    first, second = History(1, "tree", 0, 2, KEEP), History(1, "tree", 1, 2, KEEP)
    records = [first.after(first.first), second.after(second.first + 1)]
    order = np.random.default_rng(1).permutation(sum(len(ids) for ids, _ in records))
    ids, boxes = (np.concatenate(parts)[order] for parts in zip(*records))
    found = lanes(ids, boxes, 2)
    assert [h.step_of(*part) for h, part in zip((first, second), found)] == [first.first, second.first + 1]


def test_comets_say_after_which_step_they_are_seen():
    for step in range(6, 20):
        assert comet_step(comets_after(step)) == step
    with pytest.raises(SoakError, match="no step"):
        comet_step({7: 50, 9: 50})


def test_a_lost_record_is_found(model):
    made, runtime = model
    assert len(made.steps(runtime)) == len(WRITERS)
    tree = runtime.tree("deep")
    ids, boxes = tree.items()
    tree.delete(int(ids[5]), boxes[5])
    with pytest.raises(SoakError, match="deep: lane 0 is in no state .* 1 missing"):
        made.steps(runtime)


def test_trees_that_change_together_are_found_apart(model):
    made, runtime = model
    history = made.histories["left"][0]
    runtime.tree("left").insert_many(*history.batch((history.first + 1) // 3, False))
    with pytest.raises(SoakError, match="left is after step"):
        made.steps(runtime)


def test_a_half_dropped_comet_is_found(model):
    made, runtime = model
    runtime.tree("comet 1").delete_many(*[part[:1] for part in comet_batch(1)])
    with pytest.raises(SoakError, match="comets"):
        made.steps(runtime)


def test_what_a_thread_finds_wrong_ends_the_work(model, monkeypatch):
    made, runtime = model
    monkeypatch.setattr(History, "step_of", lambda self, ids, boxes: 1 // 0)
    acknowledged = np.zeros(len(WRITERS), np.int64)
    with pytest.raises(ZeroDivisionError):
        Work(runtime, made, acknowledged)
    monkeypatch.undo()
    work = Work(runtime, made, acknowledged)
    monkeypatch.setattr(Model, "steps_of", lambda self, tree, reader: 1 // 0)
    with pytest.raises(SoakError, match="ZeroDivisionError"):
        work.run(60)


def test_a_step_that_was_acknowledged_and_is_gone_is_found():
    run._require_acknowledged([5, 5], [5, 6])
    with pytest.raises(SoakError, match="told that step 5 is committed; step 4 was recovered"):
        run._require_acknowledged([5, 5], [5, 4])
    with pytest.raises(SoakError, match="step 7 was recovered"):
        run._require_acknowledged([5, 5], [5, 7])


def test_what_grows_from_round_to_round_is_found():
    def rounds(grows: int) -> list[Round]:
        kinds = ("disk", "resident", "descriptors", "mappings")
        return [Round(i, "balanced", False, left=dict.fromkeys(kinds, (10 + grows * i) << 20)) for i in range(20)]

    assert run._growth(rounds(0)) == []
    assert len(run._growth(rounds(30))) == 4
    assert run._growth(rounds(30)[:6]) == []
    busier = rounds(30)
    for round_ in busier:
        round_.steps = 100 + 500 * round_.number
    assert [problem.split()[0] for problem in run._growth(busier)] == ["resident", "descriptors", "mappings"]


def test_a_directory_of_more_than_twice_the_live_bytes_is_found():
    mib = 1 << 20
    assert run._waste({"disk": 20 * mib, "data": 12 * mib}, 10 * mib, 2.0) == []
    found = run._waste({"disk": 20 * mib + 4096, "data": 12 * mib}, 10 * mib, 2.0)
    assert len(found) == 1 and "20,975,616 bytes on the disk, 12,582,912 of them data files" in found[0]
    assert len(run._waste({"disk": 2 * mib + 4096, "data": mib}, mib, 2.0)) == 1
    assert run._waste({"disk": 2 * mib, "data": mib}, mib // 2, 2.0) == []


def test_the_command_exits_with_1_when_something_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_run", lambda *arguments: _raise())
    file = tmp_path / "found.json"
    arguments = ["--minutes", "0.01", "--keep", str(KEEP), "--dir", str(tmp_path), "--json", str(file)]
    assert run.main(arguments) == 1
    assert "PROBLEM round 0: SoakError: seven" in capsys.readouterr().out
    found = json.loads(file.read_text(encoding="utf-8"))
    assert not found["ok"] and len(found["problems"]) == 1
    assert sorted(TREES) == [name for name in kept_trees(tmp_path) if not name.startswith("comet")]


def _raise() -> int:
    raise SoakError("seven")


def kept_trees(directory) -> list[str]:
    """The trees of the index that a soak left behind."""
    index = next(directory.glob("xtree-soak-*/index"))
    with xtree.Runtime(index, mode="r") as runtime:
        return runtime.trees()
