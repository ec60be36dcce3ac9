"""The reference in docs/api shows every public name, and sphinx makes it without a warning."""

import inspect
import pydoc
import re
import subprocess
import sys

import pytest
from support.places import ROOT

import xtree

SOURCES = ROOT / "docs" / "api"
CLASSES = [value for name in xtree.__all__ if isinstance(value := getattr(xtree, name), type)
           and not issubclass(value, Exception) and value is not xtree.Config]  # Config's fields are its signature
NOT_FOR_USERS = {"let_others_begin"}  # the queue of commits calls it
SPECIAL = {xtree.XTree: {"__len__", "__contains__"}}


def directives():
    """(kind, name, options) of each directive that describes a name."""
    for page in sorted(SOURCES.glob("*.rst")):
        module = ""
        pattern = r"^\.\. ([\w:]+):: *(\S+?)(?:\(\))?\n((?:   :.*\n)*)"
        for kind, name, options in re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE):
            if kind == "currentmodule":
                module = f"{name}."
            elif kind.startswith(("auto", "py:")) and kind != "automodule":
                yield kind, module + name, dict(re.findall(r":([\w-]+): *(.*)", options))


def shown_members(owner, options):
    """The attributes of a class that an autoclass directive shows."""
    undocumented = "undoc-members" in options
    if options.get("members"):
        names = re.split(r",\s*", options["members"])
    else:
        names = [name for name in vars(owner) if not name.startswith("_")] if "members" in options else []
    found = [(name, inspect.getattr_static(owner, name)) for name in names]
    return [attribute for name, attribute in found if undocumented or inspect.getdoc(getattr(owner, name))]


def shown_attributes():
    """All class attributes that the reference shows, each as it stands in its class."""
    shown = []
    for kind, name, options in directives():
        if kind == "autoclass":
            shown += shown_members(pydoc.locate(name), options)
        elif kind in ("automethod", "autoproperty"):
            owner, attribute = name.rsplit(".", 1)
            shown.append(inspect.getattr_static(pydoc.locate(owner), attribute))
    return shown


def test_every_directive_names_something():
    named = [name for _, name, _ in directives()]
    assert not [name for name in named if pydoc.locate(name) is None]
    assert len(set(named)) == len(named)


def test_every_public_name_is_in_the_reference():
    assert {f"xtree.{name}" for name in [*xtree.__all__, "open"]} <= {name for _, name, _ in directives()}


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_public_method_is_in_the_reference(owner):
    """A method that several classes share is shown in one of them."""
    shown = shown_attributes()
    public = {name for name in dir(owner) if not name.startswith("_")} - NOT_FOR_USERS | SPECIAL.get(owner, set())
    assert public
    assert not {name for name in public if not any(inspect.getattr_static(owner, name) is each for each in shown)}


def test_sphinx_makes_the_reference_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="make docs installs sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(SOURCES), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html"))
    anchors = set(re.findall(r' id="(xtree\.[\w.]+)"', pages))
    assert {f"xtree.{name}" for name in xtree.__all__} | {"xtree.XTree.query", "xtree.Transaction.status"} <= anchors
