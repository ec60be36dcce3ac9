"""What the documents point at is there: files, tests, commands."""

import re
from pathlib import Path

import numpy as np
import pytest

import xtree

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_test_named_in_the_documents_exists():
    for page in PAGES:
        for file, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            assert (ROOT / "tests" / file).exists(), f"{page.name} names {file}"
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{page.name} names {file}::{name}"


def test_make_targets_named_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z-]+)`", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} names make {target}"


def test_the_quick_start_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Quick start\s+```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.group(1), "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert sorted(said[0].strip("[]").split()) == ["1", "3"]
    assert said[1].strip("[]").split() == ["3", "2"]
    assert said[2].startswith("3 ")


def test_the_other_lines_of_the_readme_run(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"More of it:\s+```python\n(.*?)```", readme, re.DOTALL)
    corners = np.arange(20.0).reshape(10, 2)
    boxes = np.hstack([corners, corners + 1])
    names = {"xtree": xtree, "boxes": boxes, "windows": boxes, "box": boxes[0]}
    names |= {"old_box": boxes[7], "new_box": boxes[8]}
    monkeypatch.chdir(tmp_path)
    exec(compile(block.group(1), "README.md", "exec"), names)
    assert (7, boxes[8]) in names["tree"]
