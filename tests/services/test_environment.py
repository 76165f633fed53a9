"""What is on this machine: the real one, and packages that are missing, wrong or doubled."""

import configparser
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from places import ROOT

from prompt_tune.services.environment import PURPOSES, Package, look_around, package_problems, required_packages

FITS = Package("numpy", "", ">=2", "2.1", fits=True)


def test_this_machine_is_as_its_packages_say() -> None:
    found = look_around()
    by_name = {part.name: part for part in found.packages}
    assert by_name["numpy"].version == np.__version__ and by_name["numpy"].extra == ""
    assert by_name["torch"].extra == "fit" and by_name["torch"].version == metadata.version("torch")
    assert all(part.fits for part in found.packages if part.version)
    assert not by_name.keys() & {"pytest", "ruff", "mypy"}  # of the development
    assert "CPUExecutionProvider" in found.providers == tuple(onnxruntime.get_available_providers()) or found.providers
    assert found.cores >= 1 and found.versions["Python"] == sys.version.split()[0]
    assert found.torch_cuda.startswith("torch was built with")
    assert found.cuda or found.missing_libraries or "CUDAExecutionProvider" not in found.providers


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ([FITS], []),
        (
            [FITS, Package("torch", "fit", ">=2.11", None, False), Package("onnx", "fit", ">=1", None, False)],
            [("Not installed, and needed for fit, export, bake, demo: torch, onnx.", "[fit]", False)],
        ),
        (
            [
                FITS,
                Package("torch", "fit", ">=2.11", None, False),
                Package("onnx", "fit", ">=1", "1.2", True),
                Package("matplotlib", "fit", ">=3.9", "3.10", True),
            ],
            [("Missing for fit, export, bake, demo: torch.", "[fit]", True)],
        ),
        (  # another package has brought h11, and an old one: nobody asked for a server
            [
                FITS,
                Package("uvicorn", "serve", ">=0.54", None, False),
                Package("h11", "serve", ">=0.16", "0.14", False),
            ],
            [("Not installed, and needed for serve: uvicorn.", "[serve]", False)],
        ),
        (
            [FITS, Package("av", "video", "<19,>=18", "17.0", False)],
            [("av 17.0 is not in <19,>=18, which was tested for videos, cameras, streams.", "[video]", True)],
        ),
        ([Package("numpy", "", ">=2", None, False)], [("needed for detect, val, verify: numpy.", "pip install", True)]),
        ([], [("is not installed.", "pip install", False)]),
    ],
)
def test_problem_has_its_cure(packages: list[Package], expected: list[tuple[str, str, bool]]) -> None:
    found = list(package_problems(packages))
    assert len(found) == len(expected)
    for problem, (what, cure, broken) in zip(found, expected, strict=True):
        assert what in problem.what and cure in problem.cure and problem.broken == broken


def test_every_extra_for_users_has_its_purpose() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options.extras_require"]) - {"docs", "release", "test"} == PURPOSES.keys() - {""}


def installed(folder: Path, name: str, version: str, *requires: str) -> None:
    """Installs a package that is a name and a version."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}")


def test_requirements_are_read_from_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requires = (
        *(
            "numpy<3,>=2.0",
            'onnxruntime-gpu<2,>=1.27; sys_platform == "linux"',
            'onnxruntime<2,>=1.27; sys_platform != "linux"',
        ),
        *(
            'torch<3,>=2.11; extra == "fit"',
            'onnxruntime-gpu[cuda,cudnn]<2,>=1.27; extra == "cuda"',
            'ruff; extra == "test"',
        ),
    )
    installed(tmp_path, "prompt-tune", "0.1.0", *requires)
    installed(tmp_path, "numpy", "1.26.4")
    installed(tmp_path, "onnxruntime", "1.30.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert required_packages() == (
        Package("numpy", "", "<3,>=2.0", "1.26.4", False),
        Package("onnxruntime", "", "<2,>=1.27", "1.30.0", True),
        Package("torch", "fit", "<3,>=2.11", None, False),
    )
    installed(tmp_path, "onnxruntime-gpu", "1.30.0")
    (both,) = (each for each in package_problems(required_packages()) if "both" in each.what)
    assert both.cure == "pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime-gpu" and both.broken


def test_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libc10.so: cannot open shared object file')\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = look_around()
    monkeypatch.undo()
    (problem,) = (each for each in found.problems if each.what.startswith("torch"))
    assert problem.what == "torch is installed, but cannot be imported: libc10.so: cannot open shared object file."
    assert problem.broken and found.broken and found.torch_cuda == ""
