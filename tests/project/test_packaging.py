"""Wheel and source distribution hold what they should, and a wheel works in an environment of its own.

Promises (What people touch):

- wheel and source distribution are complete; the wheel works in an empty environment:
  all of it.
"""

import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from support.places import ROOT

import xtree

SMOKE = """
import sys, tempfile, pathlib, numpy as np, xtree
from xtree.data import cities
assert "site-packages" in xtree.__file__, xtree.__file__
path = pathlib.Path(tempfile.mkdtemp()) / "index"
towns = cities()
with xtree.open(path, dims=2) as tree:
    tree.insert_many(towns.ids, towns.boxes)
with xtree.open(path) as tree:
    tree.check()
    assert sorted(tree.query((-180, -90, 180, 90)).tolist()) == towns.ids.tolist()
print("works", xtree.__version__)
"""


def sources(suffix: str) -> set[str]:
    """Paths of the source files of a kind as they should stand in a distribution."""
    found = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "xtree").rglob(f"*{suffix}")}
    return {name for name in found if "__pycache__" not in name}


def test_the_distribution_is_called_xtree_index_by_its_maintainers_and_the_module_xtree():
    about = importlib.metadata.metadata("xtree-index")
    assert about["Name"] == "xtree-index" and about["Version"] == xtree.__version__
    assert about["Author"] == "xtree maintainers"
    commands = importlib.metadata.entry_points(group="console_scripts", name="xtree")
    assert {command.value for command in commands} == {"xtree.tools.cli:main"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_and_the_module_have_the_version_of_the_project():
    version = re.search(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE).group(1)
    assert re.search(r"^version: (.+)$", text_of("CITATION.cff"), re.MULTILINE).group(1) == version
    assert xtree.__version__ == version


def test_pre_commit_runs_the_linters_in_the_versions_of_the_extra_test():
    pinned = re.compile(r'"([\w-]+==[\d.]+)"')
    versions = pinned.findall(text_of("pyproject.toml"))
    assert {version.split("==")[0] for version in versions} == {"ruff", "mypy", "cython-lint"}
    assert sorted(pinned.findall(text_of(".pre-commit-config.yaml"))) == sorted(versions)


def test_wheels_are_built_for_each_python_that_the_project_names():
    project = text_of("pyproject.toml")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    built = re.findall(r'"cp3(\d+)-\*"', re.search(r"^build = (\[.*\])$", project, re.MULTILINE).group(1))
    assert named and [f"3.{minor}" for minor in built] == named


def build(kind: str, source: Path, out: Path) -> Path:
    """The wheel or the sdist of a source tree. It is compiled without optimisation, since no test here measures."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", f"--{kind}"]
    unoptimised = {**os.environ, "CFLAGS": "-O0"}
    done = subprocess.run(
        [*command, "--outdir", str(out), str(source)], env=unoptimised, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (made,) = out.iterdir()
    return made


def copy_compiled(target: Path) -> None:
    """Copies this checkout's compiled modules into a tree, with their times, so that they aren't compiled again.

    Modules that the checkout no longer has are left out. If nothing was compiled, the build of the tree does it.
    """
    modules = {name.removesuffix(".pyx") for name in sources(".pyx")}
    for kept in (ROOT / "build" / "cython", *(ROOT / "build" / "release").glob("lib.*")):
        for path in kept.rglob("*"):
            if str(path.relative_to(kept).as_posix()).split(".")[0] in modules:
                there = target / path.relative_to(ROOT)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, there)


def unpacked(sdist: Path, target: Path) -> Path:
    """The tree that an sdist holds, with the times of its files."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (tree,) = target.iterdir()
    return tree


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist of this checkout, built in a copy so that nothing is left behind."""
    copy = tmp_path_factory.mktemp("checkout") / "xtree"
    built = (".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist", "demo-output", "__pycache__", "*.egg-info",
             "*.so", "*.pyd", "*.c")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*built))
    copy_compiled(copy)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel made from the sdist, with the modules that were compiled in this checkout."""
    tree = unpacked(sdist, tmp_path_factory.mktemp("unpacked"))
    copy_compiled(tree)
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_sdist_holds_everything_a_build_needs_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "xtree/py.typed",
              "tools/__init__.py", "tests/project/test_packaging.py", "examples/quickstart.py",
              "examples/notebook.ipynb", "docs/durability.md", "docs/api/conf.py", "docs/api/index.rst",
              "CONTRIBUTING.md", "CITATION.cff", ".pre-commit-config.yaml"}
    for suffix in (".py", ".pyx", ".pxd", ".pyi", ".h", ".csv"):
        wanted |= sources(suffix)
    assert not wanted - names
    assert not {name for name in names if name.endswith((".c", ".so", ".pyc", ".o"))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_was_built_from_the_sdist_and_holds_extensions_headers_stubs_and_data(wheel):
    require_whole(wheel)


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_the_wheel_can_be_compiled_from_the_sdist_alone(sdist, tmp_path):
    require_whole(build("wheel", unpacked(sdist, tmp_path / "unpacked"), tmp_path / "wheel"))


def require_whole(wheel: Path) -> None:
    """Asserts that a wheel holds what it should, and a compiled module for each .pyx."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {"xtree/py.typed", "xtree/tools/__init__.py", "xtree/tools/check.py"}
    for suffix in (".py", ".pxd", ".pyi", ".h", ".csv"):
        wanted |= sources(suffix)
    assert not wanted - names
    compiled = {name.split(".")[0] for name in names if name.endswith((".so", ".pyd"))}
    assert compiled == {name.removesuffix(".pyx") for name in sources(".pyx")}
    assert not {name for name in names if name.endswith((".c", ".pyx")) or name.startswith(("tests/", "tools/"))}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / Path("python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = functools.partial(subprocess.run, cwd=tmp_path, env=environment, check=False)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, str(wheel)], check=True)
    done = run([str(python), "-W", "error", "-c", SMOKE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("works")
    command = run([str(python.parent / "xtree"), "--version"], capture_output=True, text=True)
    assert command.returncode == 0, command.stderr
