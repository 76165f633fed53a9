"""The wheel of prompt-tune itself, for people who get a bundle and have no checkout."""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prompt_tune.errors import GraphError

SOURCES = ("prompt_tune", "prompts", "export", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
USED = ("__pycache__", ".*", "node_modules", "onnxruntime")  # what a checkout gathers in use
WHEELS = "prompt_tune-*.whl"
_SETUPTOOLS = 77  # as pyproject.toml requires: with it, the build needs no network
_CURE = "Without --with-wheel, the bundle's README says how to install the package."


def build_wheel(folder: Path) -> Path:
    """Builds the wheel from the checkout that this package runs from. The checkout stays as it is.

    Args:
        folder: Where the wheel goes.

    Returns:
        The wheel's file.

    Raises:
        GraphError: The package does not run from a checkout, or the build fails.
    """
    checkout = find_checkout()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check"]
    if _has_setuptools():
        command.append("--no-build-isolation")
    with tempfile.TemporaryDirectory(prefix="prompt-tune-wheel-") as name:
        source, built = Path(name, "source"), Path(name, "built")
        source.mkdir()
        for part in SOURCES:
            if (checkout / part).is_dir():
                shutil.copytree(checkout / part, source / part, ignore=shutil.ignore_patterns(*USED))
            else:
                shutil.copy2(checkout / part, source / part)
        done = subprocess.run(
            [*command, "--wheel-dir", built, source], capture_output=True, text=True, errors="replace", check=False
        )
        wheels = sorted(built.glob(WHEELS)) if built.is_dir() else []
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
            raise GraphError(f"The wheel cannot be built from '{checkout}': {reason} {_CURE}")
        return Path(shutil.copy2(wheels[0], folder / wheels[0].name))


def find_checkout() -> Path:
    """The checkout that this package runs from.

    Raises:
        GraphError: It was installed from a wheel.
    """
    root = Path(__file__).resolve().parents[2]
    if all((root / part).exists() for part in SOURCES):
        return root
    raise GraphError(
        "--with-wheel builds the wheel from a checkout of prompt-tune, and this one was installed without a checkout. "
        "Copy the wheel that you installed it from into the bundle, or run `pip wheel --no-deps .` in a checkout. "
        f"{_CURE}"
    )


def _has_setuptools() -> bool:
    """Whether setuptools is installed, and new enough."""
    if importlib.util.find_spec("setuptools") is None:
        return False
    return int(importlib.metadata.version("setuptools").split(".")[0]) >= _SETUPTOOLS
