"""Every form of the kernels that this processor has gives the same answers, in the same order, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.places import ROOT

from xtree.algorithms.kernels import forms

HISTORIES = "test_every_history_agrees_with_a_multiset_of_records"
ANSWERS = """
import hashlib
import sys

import numpy as np
from support import tree_data
from support.packed_trees import load

from xtree.algorithms.kernels import forms

from xtree.algorithms.queries import search
from xtree.algorithms.queries.nearest import nearest
from xtree.persistence.store.memory_store import MemoryStore

print(forms.simd)
for dims in (1, 2, 3, 4, 5, 8, 17, 64):
    for shape in tree_data.ALL:
        random = np.random.default_rng(dims)
        boxes = tree_data.ALL[shape](random, 1 + 13 * dims + 400 // dims, dims)
        store = MemoryStore()
        _, state = load(store, boxes)
        a, b = boxes[random.integers(0, len(boxes), (2, 12))]
        low, high = np.minimum(a, b)[:, :dims], np.maximum(a, b)[:, dims:]
        windows = np.vstack([a, np.hstack([low, high]), np.repeat([[-np.inf, np.inf]], dims, axis=1).reshape(1, -1)])
        digest = hashlib.sha256()
        for predicate in (0, 1, 2):
            for asked in (windows, np.repeat(windows, 4, axis=0)):  # each alone, and in groups
                for answer in search.query(store, state, np.ascontiguousarray(asked), predicate):
                    digest.update(answer.tobytes())
        for answer in nearest(store, state, np.ascontiguousarray(boxes[:9, :dims] * 0.9), 11):
            digest.update(answer.tobytes())
        print(dims, shape, digest.hexdigest())
"""


def run(form: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XTREE_SIMD": form, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_all_forms_agree():
    answers = {}
    for form in forms.available():
        ran = run(form, ANSWERS)
        assert ran.returncode == 0, ran.stderr
        chosen, *lines = ran.stdout.splitlines()
        assert chosen == form
        answers[form] = lines
    assert len(answers["portable"]) > 100
    for form, lines in answers.items():
        assert lines == answers["portable"], form


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", forms.available()[1:])
def test_the_tests_of_answers_pass_with_each_form(form):
    files = [f"tests/algorithms/test_{name}.py" for name in ("search", "nearest")]
    histories = [f"tests/api/test_model.py::{HISTORIES}[{dims}-memory]" for dims in (2, 17)]
    arguments = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, *histories]
    environment = {**os.environ, "XTREE_SIMD": form}
    ran = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_the_best_form_is_the_default():
    if "XTREE_SIMD" not in os.environ:
        assert forms.simd == forms.available()[0]
    assert run("", "import xtree.algorithms.kernels.forms as k; assert k.simd == k.available()[0]").returncode == 0


@pytest.mark.parametrize("form", ["sse9", "AVX2", "neon"])
def test_a_form_that_cannot_run_here_is_refused_at_import(form):
    ran = run(form, "import xtree.algorithms.queries.search")
    assert ran.returncode != 0
    assert f"ImportError: XTREE_SIMD={form}: this processor runs {', '.join(forms.available())}" in ran.stderr
