"""Running the command line in this process, as the console script does."""

import sys
from dataclasses import dataclass

import pytest

from prompt_tune.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run_command(capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """`prompt-tune ARGUMENTS`, its exit status (0 when it just returns) and what it printed."""
    capfd.readouterr()
    before = sys.argv
    sys.argv = ["prompt-tune", *map(str, arguments)]
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before
    return Outcome(status, *capfd.readouterr())
