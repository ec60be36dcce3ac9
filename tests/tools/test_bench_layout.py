"""The benchmark of page sizes measures what it says, and checks every answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import xtree
from xtree.tools.bench import layout
from xtree.tools.bench.cli import bench
from xtree.tools.bench.layout import LayoutScale
from xtree.tools.bench.report import WrongAnswerError

TINY = LayoutScale(2, (2, 9, 33), (4096, 8192, 16384), records=(2000, 500), questions=30, inserts=50, hits=10)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(layout, "QUICK", TINY)


def test_every_page_size_has_its_figures_beside_the_usual_one(tmp_path):
    file = tmp_path / "layout.json"
    done = CliRunner().invoke(bench, ["layout", "--quick", "--json", str(file)])
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    for section, sizes in (("2-D", (4, 8, 16)), ("9-D", (8, 4, 16)), ("33-D", (32, 16))):
        for what in ("build", "window", "nearest ten", "insert"):
            of_it = [figure for figure in figures if figure["section"] == f"{section}, {what}"]
            assert [figure["name"] for figure in of_it] == [f"{what}, pages of {size} KiB" for size in sizes]
            assert all(len(figure["samples"]) == 2 and figure["least"] > 0 for figure in of_it)
            assert not of_it[0]["ratios"] and all(list(figure["ratios"]) == [of_it[0]["name"]] for figure in of_it[1:])


@pytest.mark.parametrize("wrong", ["query", "nearest"])
def test_a_wrong_answer_ends_the_benchmark(monkeypatch, wrong):
    right = getattr(xtree.XTree, wrong)

    def lose_one(self, *arguments, **options):
        found = right(self, *arguments, **options)
        if wrong == "nearest":
            return np.roll(found, 1, axis=1)
        offsets, ids = found
        return np.maximum(offsets - 1, 0), ids

    monkeypatch.setattr(xtree.XTree, wrong, lose_one)
    with pytest.raises(WrongAnswerError):
        layout.bench_layout(TINY, say=lambda line: None)
