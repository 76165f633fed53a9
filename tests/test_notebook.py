"""The notebook of the docs is committed without outputs, and runs from top to bottom, with pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import extras
from places import ROOT

extras.needs("nbmake", "ipykernel")

NOTEBOOK = ROOT / "docs" / "learn.ipynb"
PICTURES = 5


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    parts = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [part for part in parts if part["cell_type"] == "code"]


def test_notebook_has_no_outputs() -> None:
    assert all(part["outputs"] == [] and part["execution_count"] is None for part in cells(NOTEBOOK))


def test_notebook_runs_and_shows_that_the_classes_are_learned(tmp_path: Path) -> None:
    copy = Path(shutil.copy(NOTEBOOK, tmp_path))
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbmake", "--overwrite", copy.name]
    done = subprocess.run(
        [*command, "--nbmake-timeout=500", f"--rootdir={tmp_path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = [output for part in cells(copy) for output in part["outputs"]]
    shown = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    assert sum("image/png" in data or "image/jpeg" in data for data in shown) == PICTURES
    text = "".join("".join(output.get("text", "")) for output in outputs)
    learned = float(text.split("is kept: AP50 ")[1].split()[0])
    alone = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("without learning, the ")]
    assert learned > 0.5 > max(alone) and len(alone) == 2
    assert "\n0 bits of " in text
