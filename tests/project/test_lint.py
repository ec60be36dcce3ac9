"""The linters run clean over the whole source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cython_lint.cython_lint import PYCODESTYLE_CODES  # that it makes pycodestyle ignore
from support.places import ROOT

CYTHON = ["xtree", "tools/probes"]
COMMANDS = {
    "ruff": ["ruff", "check", "--no-cache", "--output-format", "concise"],
    "cython-lint": ["cython-lint", "--no-pycodestyle", *CYTHON],
    "pycodestyle": [  # as cython-lint calls it, but once, not in a process for each file
        "pycodestyle", "--filename=*.pyx,*.pxd", "--max-line-length=120",
        f"--ignore={','.join(sorted(PYCODESTYLE_CODES))}", *CYTHON,
    ],
    "mypy": ["mypy", "--cache-dir", os.devnull],
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", COMMANDS)
def test_is_clean(tool):
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ.get("PATH", "")}
    executable, *arguments = COMMANDS[tool]
    done = subprocess.run(
        [str(Path(scripts) / executable), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
