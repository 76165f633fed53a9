"""The version of the installed package, and how it is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("prompt-tune")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

PUBLISHED = False  # whether `pip install prompt-tune` works: True from the day that the package is on PyPI


def install(extra: str) -> str:
    """The command that installs the package with an extra, as the cure of an error."""
    return f"pip install 'prompt-tune[{extra}]'" if PUBLISHED else f"pip install '.[{extra}]' (in a checkout)"
