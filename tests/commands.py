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
        status = 1 if isinstance(stop.code, str) else int(stop.code or 0)  # None: done; a text is an error
    finally:
        sys.argv = before
    return Outcome(status, *capfd.readouterr())
