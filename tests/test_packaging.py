"""What `pip install` installs: every package and every data file, under one name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from places import ROOT

PLACES = {"prompt_tune": "prompt_tune", "prompts": "prompt_tune/prompts", "export": "prompt_tune/export"}
MADE = ("__pycache__", ".*", "node_modules", "onnxruntime")  # by running the package, or the kit's page


def test_wheel_has_every_file_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves folders behind: not in the checkout
    for name in (*PLACES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*MADE))
        else:
            shutil.copy2(ROOT / name, source / name)
    expected = {
        f"{target}/{path.relative_to(source / folder).as_posix()}"
        for folder, target in PLACES.items()
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", tmp_path, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    with zipfile.ZipFile(next(tmp_path.glob("prompt_tune-*.whl"))) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: AGPL-3.0-or-later" in wheel.read(metadata).decode()
    assert found == expected
