"""What CONTRIBUTING.md names is there, and every folder of the package is in its table."""

import re

from support.places import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_folders_and_files_it_names_exist():
    named = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    named += re.findall(r"`(?:python )?([\w./-]+(?:/|\.(?:py|md|toml|cff|yml)))`", PAGE)
    assert "docs/architecture.md" in named and "xtree/persistence/" in named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z-]+)(?:`|  )", PAGE))
    assert {"test", "lint", "torture"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_its_table_has_every_folder_of_the_package():
    packages = [path.parent for path in (ROOT / "xtree").glob("**/__init__.py")]
    folders = {f"{folder.relative_to(ROOT).as_posix()}/" for folder in packages}
    inner = {folder for folder in folders if folder.startswith("xtree/algorithms/") and folder != "xtree/algorithms/"}
    assert folders - inner <= set(re.findall(r"^\| `([\w/]+)` \|", PAGE, re.MULTILINE))
