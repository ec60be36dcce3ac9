"""The examples and the notebook run as they stand.

Promises (What people touch):

- examples, notebook, demo and command line work:
  all of it, test_demo.py, test_cli.py.
"""

import subprocess
import sys

import nbclient
import nbformat
import pytest
from support.places import EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


@pytest.mark.filterwarnings("default")      # the notebook machinery has warnings of its own
def test_notebook_runs_and_shows_the_picture(tmp_path):
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are left out of the repository"
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert any("Zürich" in output.get("text", "") or "Vienna" in output.get("text", "") for output in outputs)
