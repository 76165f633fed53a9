"""The version of the package, and how it is installed."""

__version__ = "0.1.0"  # its only home: setup.cfg reads it from here

PUBLISHED = False  # whether `pip install prompt-tune` works: True from the day that the package is on PyPI
NAME = "prompt-tune" if PUBLISHED else "."  # what pip installs
# for machines without a GPU: all that the base install brings, with `onnxruntime` in place of `onnxruntime-gpu`
CPU_PACKAGES = "onnxruntime numpy pillow click rich jinja2 safetensors"


def install(extra: str) -> str:
    """The command that installs the package with an extra, as the cure of an error."""
    return f"pip install '{NAME}[{extra}]'" + ("" if PUBLISHED else " (in a checkout)")


def install_on_cpu(package: str = NAME) -> str:
    """The commands that install the package without the large `onnxruntime-gpu`.

    Args:
        package: What pip is to install: a wheel, a checkout, or a name.
    """
    return f"pip install {CPU_PACKAGES} && pip install --no-deps {package}"
