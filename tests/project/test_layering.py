"""Folders are layers: a file imports from its own layer or lower ones, and persistence knows nothing of trees.

Promises (What people touch):

- layers, linters, types and stubs:
  all of it, test_lint.py, test_stubs.py.
"""

import ast
import re
from pathlib import Path

import pytest
from support.places import ROOT

# Lowest first; a module belongs to its folder. docs/architecture.md says what each of them is for.
LAYERS = [
    "xtree.persistence.base",
    "xtree.persistence.pages",
    "xtree.persistence.store",
    "xtree.persistence.files",
    "xtree.persistence.commit",
    "xtree.persistence.recovery",
    "xtree.persistence",
    "xtree.algorithms.kernels",
    "xtree.algorithms",
    "xtree.algorithms.updates",
    "xtree.algorithms.queries",
    "xtree.input",
    "xtree.data",
    "xtree",
    "xtree.tools.fsck",
    "xtree.tools.dump",
    "xtree.tools",
    "xtree.tools.probes",
    "xtree.tools.bench",
    "xtree.tools.soak",
]
BELOW_ALL = "xtree.errors"
PERSISTENCE = "xtree.persistence"


def module_of(path: Path) -> str:
    """The dotted name by which a source file is imported; tools/ is installed as xtree.tools."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "tools":
        parts.insert(0, "xtree")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(
    path
    for folder in ("xtree", "tools")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}
)
MODULES = {module_of(path) for path in SOURCES}
PACKAGES = {module_of(path) for path in SOURCES if path.name == "__init__.py"}


def python_imports(text: str) -> set[str]:
    """Every module that Python source imports, also inside functions and for annotations only.

    `from a import b` counts as a and a.b.
    """
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def cython_imports(text: str) -> set[str]:
    """The same for Cython source: import and cimport."""
    code = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    code = re.sub(r"#.*", "", code)
    code = re.sub(r"\(\s*([^()]*?)\s*\)", lambda match: " " + " ".join(match.group(1).split()), code)
    found = set()
    for line in code.split("\n"):
        if match := re.match(r"\s*from\s+(\S+)\s+c?import\s+(.+)", line):
            found |= {match.group(1)} | {f"{match.group(1)}.{name}" for name in first_words(match.group(2))}
        elif match := re.match(r"\s*c?import\s+(.+)", line):
            found |= first_words(match.group(1))
    return found


def first_words(names: str) -> set[str]:
    """The names in `a, b as c`."""
    return {name.split()[0] for name in names.split(",") if name.strip()}


def ours(path: Path) -> set[str]:
    """The other modules of this project that a file imports."""
    text = path.read_text(encoding="utf-8")
    found = cython_imports(text) if path.suffix in {".pyx", ".pxd"} else python_imports(text)
    modules = {name for name in found if name in MODULES}
    # `from xtree import errors` names the package on the way to a module: only the module counts.
    packages = {name for name in modules if any(other.startswith(name + ".") for other in modules)}
    return modules - packages - {module_of(path)}


def layer_of(module: str) -> int:
    """The number of a module's layer: that of its folder."""
    if module == BELOW_ALL:
        return -1
    return LAYERS.index(module if module in PACKAGES else module.rpartition(".")[0])


IMPORTS: dict[str, set[str]] = {}
for source in SOURCES:
    IMPORTS.setdefault(module_of(source), set()).update(ours(source))


def test_the_table_names_the_folders_that_there_are():
    assert sorted(LAYERS) == sorted(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_its_own_layer_or_lower_ones(path):
    layer = layer_of(module_of(path))
    above = {name for name in ours(path) if layer_of(name) > layer}
    assert not above, f"{path.relative_to(ROOT)} is in layer {layer} and imports from above: {above}"


def test_persistence_never_imports_the_tree():
    for module, imported in IMPORTS.items():
        if module.startswith(PERSISTENCE):
            tree = {name for name in imported if not name.startswith(PERSISTENCE)} - {BELOW_ALL}
            assert not tree, f"{module} imports {tree}"


def test_no_modules_of_persistence_import_each_other_in_a_circle():
    remaining = {module: names & MODULES for module, names in IMPORTS.items() if module.startswith(PERSISTENCE)}
    while remaining:
        outside = {module for module, names in remaining.items() if not names & remaining.keys()}
        assert outside, f"in a circle, or importing from one: {sorted(remaining)}"
        for module in outside:
            del remaining[module]


def test_a_listing_of_a_folder_is_short():
    for package in PACKAGES:
        folder = ROOT / package.replace("xtree.tools", "tools").replace(".", "/")
        entries = {path.name for path in folder.iterdir() if path.suffix not in {".so", ".pyd", ".c"}} - {"__pycache__"}
        assert len(entries) < (30 if package == "xtree" else 40), f"{package} has {len(entries)} entries"


def test_the_import_parsers_see_what_they_should():
    python = "import xtree.box\ndef f():\n    from xtree import errors, tree as t\n"
    assert {"xtree.box", "xtree.errors", "xtree.tree"} <= python_imports(python)
    annotations = "if TYPE_CHECKING:\n    from xtree.tree import XTree\n"
    assert "xtree.tree" in python_imports(annotations)
    cython = '"""from xtree import no"""\nfrom xtree.box cimport (a,\n    b)\n'
    cython += "    cimport xtree.split as s  # import xtree.not\n"
    assert {"xtree.box", "xtree.box.b", "xtree.split"} <= cython_imports(cython)
    assert not {"xtree.no", "xtree.not"} & cython_imports(cython)


# What users see has no public attributes that only its own package needs: in the face, an underscore is the package's.
FRIENDS = {"xtree"}
# Not ours; and what a session asks of handles, which are the face's.
FOREIGN = {"_exit", "_replace", "_fields", "_cut_off", "_is_of"}


def test_an_underscore_is_private_to_its_module():
    for path in SOURCES:
        if path.suffix not in {".py", ".pyx"} or module_of(path).rpartition(".")[0] in FRIENDS:
            continue
        text = path.read_text(encoding="utf-8")
        used = set(re.findall(r"\b(?!self\b|cls\b)\w+\.(_[a-z]\w*)\b", text)) - FOREIGN
        defined = r"(?:def |self\.|cls\.|int |void |\")"
        foreign = {name for name in used if not re.search(rf"{defined}{name}\b", text)}
        assert not foreign, f"{path.relative_to(ROOT)} uses {sorted(foreign)} of another module"
