"""The modules of the Python kit, for tests: each finds the others, as it does beside a user's program."""

import importlib
import sys
from types import ModuleType

from places import ROOT

FOLDER = ROOT / "export" / "python"
PROGRAM = FOLDER / "detect.py"


def module(name: str) -> ModuleType:
    """A module of export/python."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
