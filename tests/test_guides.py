"""The guides: their code runs as it is printed."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = ("gis.md",)


def blocks(page):
    """The Python blocks of a page, each with the number of the line before it."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(text[: found.start(1)].count("\n"), found[1]) for found in re.finditer(r"```python\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("page", GUIDES)
def test_every_block_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    """In order, in one namespace. A comment after a print is the line that it prints."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    compared = 0
    for line, code in blocks(page):
        exec(compile("\n" * line + code, page, "exec"), names)
        said = capsys.readouterr().out.splitlines()
        promised = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        assert not promised or said == promised, f"{page}, the block after line {line}"
        compared += len(promised)
    assert compared, "no comment after a print was found"
