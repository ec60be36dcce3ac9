"""Every extension with a Python face has a stub, and the stub names exactly what is there."""

import ast
import importlib
from pathlib import Path

import pytest
from support.places import ROOT

EXTENSIONS = sorted([*(ROOT / "xtree").rglob("*.pyx"), *(ROOT / "tools").rglob("*.pyx")])
MACHINERY = {"__builtins__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__",
             "__test__", "__pyx_capi__", "__reduce_cython__", "__setstate_cython__"}


def name_of(path: Path) -> str:
    """The dotted name of an extension; tools/ is installed as xtree.tools."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return f"xtree.{name}" if name.startswith("tools.") else name


def python_face(module) -> set[str]:
    """The functions and classes that a module defines itself."""
    return {
        name
        for name, value in vars(module).items()
        if name not in MACHINERY and not name.startswith("__pyx") and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__ and callable(value)
    }


def stub_names(body: list[ast.stmt]) -> set[str]:
    """Names that the statements of a stub define."""
    names = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign) and "TypeVar" not in ast.unparse(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", EXTENSIONS, ids=name_of)
def test_the_stub_names_what_the_module_has(path):
    module = importlib.import_module(name_of(path))
    face = python_face(module)
    stub = path.with_suffix(".pyi")
    if not stub.exists():
        assert not face, f"{name_of(path)} has a Python face and no stub: {sorted(face)}"
        return
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    declared = stub_names(body)
    public = {name for name in declared if not name.startswith("_")}
    missing = {name for name in public if not hasattr(module, name)}
    assert not missing, f"the stub of {name_of(path)} names what isn't there: {sorted(missing)}"
    assert face <= declared, f"the stub of {name_of(path)} leaves out {sorted(face - declared)}"


@pytest.mark.parametrize("path", EXTENSIONS, ids=name_of)
def test_the_stubs_classes_have_the_members_they_declare(path):
    stub = path.with_suffix(".pyi")
    module = importlib.import_module(name_of(path))
    body = ast.parse(stub.read_text(encoding="utf-8")).body if stub.exists() else []
    for node in body:
        if isinstance(node, ast.ClassDef) and hasattr(module, node.name):
            missing = {name for name in stub_names(node.body) if not hasattr(getattr(module, node.name), name)}
            assert not missing, f"{name_of(path)}.{node.name} has no {sorted(missing)}"


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "xtree" / "py.typed").exists()
