"""Tests of extras that cannot share an environment with the others: each gets a small one of its own.

A test file that stands in `FILES` skips where its packages are missing (`needs`); `test_extras.py` runs it again in an
environment in which they are installed, on top of the packages of this one.
"""

import configparser
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES: dict[str, tuple[str, ...]] = {  # extra of setup.cfg -> test files
    "cvat": ("tests/kits/test_cvat_function.py",),
    "fiftyone": ("tests/runtime/test_to_fiftyone.py",),
    "label": (
        "tests/cli/test_convert.py",
        "tests/cli/test_label.py",
        "tests/services/test_cluster.py",
        "tests/services/test_conversion.py",
        "tests/services/test_items.py",
        "tests/services/test_labelling.py",
        "tests/services/test_local.py",
        "tests/services/test_results.py",
        "tests/services/test_rows.py",
    ),
    "label-studio": ("tests/kits/test_label_studio.py",),
    "mlflow": ("tests/services/test_mlflow.py",),
    "notebook": ("tests/test_notebook.py",),
    "openvino": ("tests/runtime/test_openvino.py",),
    "ray": ("tests/services/test_ray_engine.py",),
    "ray-serve": ("tests/deployment/test_ray_serve.py",),
    "release": ("tests/test_release.py",),
    "serve": (
        "tests/services/test_connection.py",
        "tests/services/test_gate.py",
        "tests/services/test_refusal.py",
        "tests/services/test_serve.py",
        "tests/services/test_serve_app.py",
        "tests/services/test_serve_as_triton.py",
        "tests/services/test_serve_metrics.py",
        "tests/cli/test_serve.py",
        "tests/test_dockerfile.py",
    ),
    "tensorboard": ("tests/services/test_tensorboard.py",),
    "track": ("tests/media/test_tracks.py",),
    "triton": ("tests/deployment/test_triton_configs.py",),
    "wandb": ("tests/services/test_wandb.py",),
}
MORE: dict[str, tuple[str, ...]] = {  # what these tests need beside the extra
    "label": ("fsspec",),
    "notebook": ("nbmake >= 1.5, < 2",),
    "serve": ("tritonclient[http] >= 2.60, < 3", "httpx >= 0.28, < 1"),
}
NO_NETWORK = ("NewConnectionError", "Name or service not known", "name resolution", "Network is unreachable")


def needs(*modules: str) -> None:
    """Skip a test file in which these cannot be imported."""
    if missing := [module for module in modules if not _is_there(module)]:
        reason = f"needs {', '.join(missing)}: tests/test_extras.py runs this file in an environment of its own"
        pytest.skip(reason, allow_module_level=True)


def _is_there(module: str) -> bool:
    """Whether a module, or one inside a package, can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def requirements(extra: str) -> list[str]:
    """What the tests of an extra install."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options.extras_require"][extra].splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")] + list(MORE.get(extra, ()))


def environment(extra: str, folder: Path) -> Path:
    """The Python of a new environment that sees the packages of this one, with the extra's on top.

    It is kept, and not made again, below the folder PROMPT_TUNE_TEST_ENVIRONMENTS if that is set.
    """
    kept = os.environ.get("PROMPT_TUNE_TEST_ENVIRONMENTS")
    place = (Path(kept) if kept else folder) / extra
    python, done = place / "bin" / "python", place / "done"
    wanted = requirements(extra)
    if done.is_file() and done.read_text().splitlines() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    paths = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in paths]  # their .pth files count too
    (packages / "beneath.pth").write_text("\n".join(lines) + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode and any(text in ran.stderr for text in NO_NETWORK):
        pytest.skip(f"no package index can be reached for the extra {extra}")
    assert not ran.returncode, ran.stderr
    done.write_text("\n".join(wanted) + "\n")
    return python
