"""Promises: each stands in the heading of the test file that holds it, names tests that exist, and none is lost."""

import ast
import re
from collections import Counter

import pytest
from support.places import DOCS, TESTS

FILES = sorted(TESTS.rglob("test_*.py"))
CHAPTER = re.compile(r"^Promises \((.+)\):$")


def heading(path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def promises_of(text: str) -> list[tuple[str, str]]:
    """(chapter, promise with its tests) for each promise of a heading."""
    chapter, found = "", []
    for line in text.split("\n"):
        if match := CHAPTER.match(line):
            chapter = match[1]
        elif line.startswith("- ") and chapter:
            found.append((chapter, line[2:]))
        elif line.startswith("  ") and found:
            found[-1] = (chapter, f"{found[-1][1]} {line.strip()}")
        elif line:
            chapter = ""
    return found


PROMISES = {path: promises for path in FILES if (promises := promises_of(heading(path)))}


def defines(path, name: str) -> bool:
    return f"def {name}(" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PROMISES, ids=lambda path: path.stem)
def test_every_test_that_a_promise_names_exists(path):
    by_name = {file.name: file for file in FILES}
    for _, promise in PROMISES[path]:
        named = re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", promise)
        here = re.findall(r"(?<!::)\b(test_\w+)\b(?!\.py)", promise)
        assert named or here or "all of it" in promise, promise
        for file, name in named:
            assert file in by_name and (not name or defines(by_name[file], name)), f"{promise}: {file}::{name}"
        for name in here:
            assert defines(path, name), f"{promise}: {name}"


def test_no_promise_is_lost():
    """The page says how many there are: a change that adds or removes one must change the number there."""
    counted = Counter(chapter for promises in PROMISES.values() for chapter, _ in promises)
    page = (DOCS / "testing.md").read_text(encoding="utf-8")
    table = page[page.index("## Promises") : page.index("## Deliberate bugs")]
    assert dict(counted) == {name: int(n) for name, n in re.findall(r"^\| (\w.+) \| (\d+) \|$", table, re.MULTILINE)}


def test_a_promise_is_read_with_its_chapter_and_all_of_its_lines():
    text = "What it is.\n\nPromises (Right answers):\n\n- one thing:\n  test_a.\n- two:\n  test_b, test_c.py.\n\nMore."
    assert promises_of(text) == [("Right answers", "one thing: test_a."), ("Right answers", "two: test_b, test_c.py.")]
