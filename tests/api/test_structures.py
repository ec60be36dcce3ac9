"""Structures other than trees live beside trees: same commits, same promises.

Promises (Nothing acknowledged is lost):

- what isn't a tree survives kills, in one commit with trees:
  test_a_stack_and_a_tree_survive_kills_in_one_commit_and_in_several.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.places import DOCS, TESTS
from support.stack_writer import PageStack, StackState, item

import xtree

WRITER = TESTS / "support" / "stack_writer.py"


@pytest.fixture
def runtime(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        runtime.tree("cities", dims=2)
        yield runtime
        if not runtime.closed:
            runtime.check()


def stack_of(runtime, name="stack") -> PageStack:
    return PageStack(runtime.structure(name, StackState))


def test_a_stack_is_a_stack_through_any_history_and_reopening(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    model: list[bytes] = []
    for _ in range(4):
        with xtree.Runtime(tmp_path / "index") as runtime:
            stack = stack_of(runtime)
            assert list(stack) == model[::-1] and len(stack) == len(model)
            for _ in range(150):
                if rng.random() < 0.6:
                    model.append(rng.randbytes(rng.choice((0, 1, 30, 700, 4000))))
                    stack.push(model[-1])
                else:
                    assert stack.pop() == (model.pop() if model else None)
                assert stack.peek() == (model[-1] if model else None)
            assert list(stack) == model[::-1]
            runtime.check()
    with pytest.raises(ValueError, match="up to"), xtree.Runtime(tmp_path / "index") as runtime:
        stack_of(runtime).push(b"x" * 5000)


def test_a_stack_and_a_tree_change_in_one_commit_or_not_at_all(runtime):
    stack, cities = stack_of(runtime), runtime.tree("cities")
    before = runtime.stats()["epoch"]
    with runtime.transaction(trees=["cities", "stack"]) as tx:
        inside = PageStack(tx.structure("stack"))
        for number in range(500):
            tx.tree("cities").insert(number, (number, number))
            inside.push(item(number))
        assert len(inside) == 500 and inside.peek() == item(499) and inside.pop() == item(499)
        assert list(inside) == [item(number) for number in range(498, -1, -1)]
        assert len(stack) == 0 and len(cities) == 0
    assert runtime.stats()["epoch"] == before + 1
    assert len(stack) == 499 and len(cities) == 500
    with pytest.raises(ZeroDivisionError), runtime.transaction() as tx:
        PageStack(tx.structure("stack")).pop()
        tx.tree("cities").insert(1, (0, 0))
        raise ZeroDivisionError
    assert len(stack) == 499 and len(cities) == 500


def test_an_error_while_a_structure_changes_undoes_it(runtime):
    stack = stack_of(runtime)
    stack.push(b"first")
    live = runtime.stats()["object_table"]["live"]

    def fail(write_set, state):
        state.root = write_set.add_page(130, 3, b"never")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stack.handle.write(fail)
    with runtime.transaction(trees=["stack"]) as tx:
        with pytest.raises(ZeroDivisionError):
            tx.structure("stack").write(fail)
        with pytest.raises(xtree.TransactionError, match="only be aborted"):
            tx.structure("stack").read(lambda store, state: None)
        tx.abort()
    assert list(stack) == [b"first"]
    table = runtime.stats()["object_table"]
    assert (table["live"], table["reserved"]) == (live, 0)


def test_threads_that_write_to_one_structure_take_turns(runtime):
    def work(part):
        stack = stack_of(runtime)
        for i in range(50):
            stack.push(b"%d" % (part * 50 + i))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, stack_of(runtime))) == list(range(200))


def test_readers_of_a_structure_see_one_epoch(runtime):
    stack = stack_of(runtime)
    for i in range(100):
        stack.push(item(i))

    def read(store, state):
        first = list(state.pages(store))
        for i in range(100):
            stack.pop()
            runtime.tree("cities").insert(i, (i, i))
        assert list(state.pages(store)) == first and len(first) > 5
        return state.count

    assert stack.handle.read(read) == 100
    assert len(stack) == 0


def test_trees_and_structures_share_names_and_are_told_apart(runtime):
    stack_of(runtime).push(b"x")
    assert runtime.trees() == ["cities"] and runtime.structures() == {"stack": "page-stack"}
    runtime.check()
    for call in (lambda: runtime.tree("stack"), lambda: runtime.tree("stack", dims=2)):
        with pytest.raises(ValueError, match="no tree"):
            call()
    with pytest.raises(ValueError, match="of the kind 'xtree'"):
        runtime.structure("cities", StackState)
    with runtime.transaction(trees=["stack", "cities"]) as tx:
        with pytest.raises(ValueError, match="no tree"):
            tx.tree("stack")
        with pytest.raises(ValueError, match="a tree"):
            tx.structure("cities")
        with pytest.raises(KeyError):
            tx.structure("nothing")
    for kind in (None, dict, "page-stack", StackState()):
        with pytest.raises(TypeError, match=r"xtree\.Structure"):
            runtime.structure("stack", kind)
    with pytest.raises(ValueError, match="that of trees"):
        type("Fake", (xtree.Structure,), {"kind": "xtree"})
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (xtree.Structure,), {"kind": "half"})()


def test_dropping_a_structure_returns_its_pages_and_ends_its_handles(runtime):
    stack = stack_of(runtime)
    before = runtime.stats()["object_table"]["live"]
    for i in range(300):
        stack.push(item(i))
    assert runtime.stats()["object_table"]["live"] > before + 50
    runtime.drop("stack")
    assert runtime.stats()["object_table"]["live"] == before and runtime.structures() == {}
    for call in (lambda: stack.push(b"x"), stack.peek, lambda: len(stack)):
        with pytest.raises(xtree.ClosedError, match="dropped"):
            call()
    again = stack_of(runtime)
    assert len(again) == 0 and again.pop() is None
    with pytest.raises(xtree.ClosedError, match="dropped"):
        stack.pop()


def test_an_index_with_a_kind_that_nothing_defines_works_but_for_that(tmp_path):
    program = """
import sys, xtree
class Odd(xtree.Structure):
    kind = "odd"
    def __init__(self, root=0): self.root = root
    @classmethod
    def decode(cls, state, root): return cls(root)
    def encode(self): return b""
    def copy(self): return Odd(self.root)
    def pages(self, store): return [self.root] if self.root else []
def write(write_set, state): state.root = write_set.add_page(200, 1, b"odd")
with xtree.Runtime(sys.argv[1]) as rt:
    rt.tree("cities", dims=2).insert(1, (0, 0))
    rt.structure("thing", Odd).write(write)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "index")], check=True)
    with xtree.Runtime(tmp_path / "index") as runtime:
        assert runtime.trees() == ["cities"] and runtime.structures() == {"thing": "odd"}
        for call in (lambda: runtime.drop("thing"), lambda: runtime.transaction(trees=["thing"])):
            with pytest.raises(ValueError, match="import the module"):
                call()
        runtime.tree("cities").insert(2, (0, 0))
        runtime.check()
        runtime.checkpoint()
        runtime.backup(tmp_path / "copy")
    for path in ("index", "copy"):
        with xtree.Runtime(tmp_path / path, mode="r") as runtime:
            runtime.check()
            assert len(runtime.tree("cities")) == 2 and runtime.structures() == {"thing": "odd"}


def test_a_read_only_structure_is_read_and_refuses_writes(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        stack_of(runtime).push(b"x")
    with xtree.Runtime(tmp_path / "index", mode="r") as runtime:
        stack = stack_of(runtime)
        assert stack.peek() == b"x"
        with pytest.raises(xtree.ReadOnlyError):
            stack.push(b"y")
        with pytest.raises(xtree.ReadOnlyError):
            stack_of(runtime, "another")
    with pytest.raises(xtree.ClosedError):
        stack.peek()


def test_a_state_that_is_not_one_is_noticed_when_it_is_read(tmp_path):
    with xtree.Runtime(tmp_path / "index") as runtime:
        handle = runtime.structure("stack", StackState)

        def spoil(write_set, state):
            state.encode = lambda: b"short"
            state.root = write_set.add_page(130, 0, b"")

        handle.write(spoil)
    with xtree.Runtime(tmp_path / "index") as runtime:
        with pytest.raises(xtree.CorruptionError, match="expected 8 bytes"):
            len(stack_of(runtime))
        runtime.tree("cities", dims=2).insert(1, (0, 0))


@pytest.mark.parametrize("root, count", [(0, 8), (1 << 16, 0)])
def test_a_root_that_does_not_fit_the_state_is_noticed(root, count):
    with pytest.raises(xtree.CorruptionError, match=f"{count} items"):
        StackState.decode(StackState(root, count).encode(), root)


def run_until_killed(path: Path, first: int, rng: random.Random) -> int:
    """The step after the last acknowledged one."""
    with subprocess.Popen([sys.executable, str(WRITER), str(path), str(first)], stdout=subprocess.PIPE, text=True) as p:
        reports = [p.stdout.readline() for _ in range(rng.randrange(1, 120))]
        time.sleep(rng.uniform(0, 0.005))
        p.kill()
        reports += p.stdout.readlines()
    whole = [report for report in reports if report.endswith("\n")]
    assert whole == [f"{first + i}\n" for i in range(len(whole))]
    return first + len(whole)


def expected(skip: int, end: int) -> list[int]:
    """What steps 0 .. end - 1 leave if every step whose number is skip - 1 modulo skip removes again what it put."""
    return [number for number in range(end) if number % skip != skip - 1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_stack_and_a_tree_survive_kills_in_one_commit_and_in_several(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    path, step = tmp_path / "index", 0
    for _ in range(6):
        acknowledged = run_until_killed(path, step, rng)
        with xtree.Runtime(path) as runtime:
            runtime.check()
            both = numbers(stack_of(runtime, "stack together"))
            assert both == ids(runtime.tree("together"))        # never one without the other
            assert both in (expected(4, acknowledged), expected(4, acknowledged + 1))
            stack, tree = numbers(stack_of(runtime, "stack alone")), ids(runtime.tree("alone"))
            done = expected(3, acknowledged)
            assert stack in (done, [*done, acknowledged]) and tree in (done, [*done, acknowledged])
            assert len(set(stack) - set(tree)) <= 1 and len(set(tree) - set(stack)) <= 1
            step = acknowledged
            repair(runtime, step)
        print(f"killed after {acknowledged} steps")
    assert step > 6


def numbers(stack: PageStack) -> list[int]:
    found = list(stack)[::-1]
    assert all(one == item(int(one.split()[0])) for one in found)
    return [int(one.split()[0]) for one in found]


def ids(tree) -> list[int]:
    return sorted(tree.items()[0].tolist())


def repair(runtime, step: int) -> None:
    """Takes back what an unacknowledged step has done, so that the next writer may repeat it."""
    for tree, stack in (("together", "stack together"), ("alone", "stack alone")):
        runtime.tree(tree).delete_many([step], [[step, 0.0]])
        top = stack_of(runtime, stack).peek()
        if top == item(step):
            stack_of(runtime, stack).pop()
    assert step not in np.concatenate([runtime.tree(tree).items()[0] for tree in ("together", "alone")])


def test_the_code_of_the_documentation_runs(runtime):
    page = (DOCS / "structures.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    names = {"xtree": xtree, "runtime": runtime, "box": [0, 0, 1, 1]}
    exec(compile(code, "structures.md", "exec"), names)
    assert names["log"].read(lambda store, log: store.read_page(log.root)[:8]) == b"one city"
    assert len(runtime.tree("cities")) == 1
    runtime.drop("log")
