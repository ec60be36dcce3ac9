"""Types: mypy --strict and pyright accept correct code of users, and find their mistakes."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import pytest
from support.places import ROOT

import xtree

CORRECT, WRONG = ROOT / "tests" / "typed" / "correct.py", ROOT / "tests" / "typed" / "wrong.py"


@pytest.fixture(scope="module")
def judged():
    """The lines of both files that mypy --strict finds wrong, with the errors."""
    options = ["--strict", "--follow-imports", "silent", "--no-error-summary", "--cache-dir", "/dev/null"]
    command = [sys.executable, "-m", "mypy", *options, str(CORRECT), str(WRONG)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"(correct|wrong)\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    assert done.returncode == 1 and found, done.stdout + done.stderr
    return {(f"{file}.py", int(line), kind) for file, line, kind in found}, done.stdout


@pytest.mark.slow
def test_correct_scripts_pass_mypy_strict(judged):
    found, said = judged
    assert not [one for one in found if one[0] == "correct.py"], said


def test_what_is_wrong_is_an_error_to_mypy_and_nothing_else(judged):
    found, said = judged
    expected = {
        ("wrong.py", number, line.split("# wrong: ")[1])
        for number, line in enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1)
        if "# wrong: " in line
    }
    assert {one for one in found if one[0] == "wrong.py"} == expected, said


@pytest.mark.skipif(shutil.which("pyright") is None, reason="needs pyright, which needs node")
def test_correct_scripts_pass_pyright():
    done = subprocess.run(["pyright", str(CORRECT)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_xtree_completes_to_public_names_only_and_a_star_leaves_open_alone():
    names = [name for name in dir(xtree) if not name.startswith("__")]
    assert names == sorted([name for name in xtree.__all__ if not name.startswith("__")] + ["open"])
    everything: dict[str, object] = {}
    exec("from xtree import *", everything)
    assert "open" not in everything and everything["XTree"] is xtree.XTree
    assert set(xtree.__all__) <= set(everything)
    assert importlib.import_module("xtree.algorithms.queries.search").query, "modules stay importable"
