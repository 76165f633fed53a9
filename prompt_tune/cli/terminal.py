"""Where the command line prints: no text of other people reaches the terminal as a control sequence.

Class names, labels and paths may come from anywhere. What terminals obey or hide in them is shown as an escape.
"""

from typing import TYPE_CHECKING

import click

from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.wording import printable

if TYPE_CHECKING:
    from rich.text import Text


def echo(*lines: str, err: bool = False) -> None:
    """Print lines, each of them as one line whatever is in it.

    Args:
        lines: Without line breaks; one that is in a name is shown as an escape.
        err: Whether to print to standard error.
    """
    for line in lines:
        click.echo(printable(line), err=err)


def note(*lines: str, err: bool = False) -> None:
    """Like `echo`, for what `--quiet` leaves out: what was written where, and what to do next."""
    if not is_quiet():
        echo(*lines, err=err)


def cell(text: str) -> "Text":
    """A cell of a table: a name may have [ ], which mean nothing here, and control characters."""
    from rich.text import Text

    return Text(printable(text))
