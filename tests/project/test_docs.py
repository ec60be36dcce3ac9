"""What the documents point at is there: files, tests, commands.

Promises (What people touch):

- links and test names in these pages:
  all of it.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.places import ROOT

import xtree

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES += sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "results").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_every_test_named_in_the_documents_exists():
    for page in PAGES:
        for file, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            path = next((ROOT / "tests").rglob(file), None)
            assert path is not None, f"{page.name} names {file}"
            source = path.read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, f"{page.name} names {file}::{name}"


def test_make_targets_named_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`?make ([a-z-]+)`", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} names make {target}"


@pytest.mark.parametrize("times", [1, 2])
def test_the_quick_start_of_the_readme_runs_and_may_be_run_twice(tmp_path, monkeypatch, capsys, times):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Quick start\s+```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for _ in range(times):
        exec(compile(block.group(1), "README.md", "exec"), {})
        said = capsys.readouterr().out.splitlines()
        assert sorted(said[0].strip("[]").split()) == ["1", "3"]
        assert said[1].strip("[]").split() == ["3", "2"]
        assert said[2].startswith("3 ")


def readme_commands():
    """The lines of the README's block of commands, without their comments."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"On the command line, in a clone:\s+```\n(.*?)```", readme, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.group(1).splitlines()]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_they_are_printed(tmp_path):
    """They run in a folder like that of a clone."""
    (tmp_path / "xtree").symlink_to(ROOT / "xtree")
    first, *commands = readme_commands()
    assert first == ["source", ".venv/bin/activate"] and len(commands) > 6
    for command, *arguments in commands:
        assert command == "xtree"
        done = subprocess.run(
            [Path(sys.executable).with_name(command), *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout, arguments


def test_nothing_says_to_install_what_somebody_else_calls_xtree():
    """The name xtree on the package index is a tool of 2012; this project is xtree-index."""
    files = [ROOT / "Makefile", ROOT / "setup.py", ROOT / "pyproject.toml", *PAGES]
    for folder in ("xtree", "tools", "examples"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pyx", ".ipynb", ".md")]
    install, extra = r"\binstall\b[^`\n]*[ '\"]xtree(?![-\w./])", r"['\"` ]xtree\["
    wrong = re.compile(rf"{install}|{extra}|pypi\.org/\S*xtree(?!-index)")
    assert wrong.search("pip install xtree") and wrong.search("pip install 'xtree[bench]'")
    assert not wrong.search("pip install 'xtree-index[bench]'")
    for file in files:
        found = [line for line in file.read_text(encoding="utf-8").splitlines() if wrong.search(line)]
        assert not found, f"{file.relative_to(ROOT)}: {found}"


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


def test_the_functions_that_the_architecture_walks_through_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"`((?:xtree|tools)/[\w/]+\.p(?:y|yx|xd))`\s+`(?:\w+\.)*(\w+)`", page)
    assert len(steps) > 25
    for file, name in steps:
        source = (ROOT / file).read_text(encoding="utf-8")
        defined = rf"^\s*(?:def|class|cp?def)\b[^=(\n]*\b{name}\b *[(:]"
        assert re.search(defined, source, re.MULTILINE), f"architecture.md names {name} in {file}"
    for folder in re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder


def test_the_documents_stay_short_enough_to_be_read():
    pages = [path for path in (ROOT / "docs").rglob("*") if path.is_file() and "results" not in path.parts]
    assert sum(path.stat().st_size for path in pages) < 125_000
    assert len((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_programs_among_the_tests_that_documents_name_can_be_started():
    """Their imports are run, in a process that has only what Python gives to a script."""
    texts = [page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md"]]
    named = {name for text in texts for name in re.findall(r"`python (tests/[\w/]+\.py)", text)}
    assert "tests/golden/make_golden.py" in named
    for program in sorted({*named, "tests/support/page_accesses.py"}):
        folder = os.path.dirname(program)
        start = f"import runpy, sys; sys.path[0] = {folder!r}; runpy.run_path({program!r}, run_name='it')"
        done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (program, done.stderr)
