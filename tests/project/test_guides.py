"""The guides: their code runs as it is printed, and what they say of Config is what Config is."""

import ast
import inspect
import re

import pytest
from support.places import DOCS

import xtree

GUIDES = ("gis.md", "choosing.md")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


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


def config_rows():
    """(field, default as it is written) of the tables of Config in choosing.md."""
    text = (DOCS / "choosing.md").read_text(encoding="utf-8").partition("## Config by task")[2]
    return re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^|]+)` \| [^|]+ \|$", text, re.MULTILINE)


def value_of(written):
    """The value of a default as the tables write it: a literal, or a whole number of KiB, MiB or GiB."""
    number, _, unit = written.partition(" ")
    return int(number) * UNITS[unit] if unit else ast.literal_eval(written)


def test_the_tables_of_config_have_each_public_field_once():
    parameters = inspect.signature(xtree.Config).parameters.values()
    fields = sorted(one.name for one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD)
    assert sorted(name for name, _ in config_rows()) == fields


def test_the_tables_of_config_have_the_defaults_that_there_are():
    written = {name: value_of(default) for name, default in config_rows()}
    assert written
    assert written == {name: getattr(xtree.Config(), name) for name in written}
