"""`--quiet` and `--verbose`, which every command takes: how much is said beside the results."""

import logging
import platform
from importlib import metadata
from typing import Any

import click

PLAIN, DETAILED = "%(message)s", "%(asctime)s %(name)s: %(message)s"
NAMED = (
    "prompt-tune",
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "ultralytics",
)  # versions that --verbose says
_KEY = "prompt_tune.verbosity"  # in the `meta` of click's contexts, which a command shares with its group
logger = logging.getLogger("prompt_tune")


def is_quiet() -> bool:
    """Whether the command that runs was given `--quiet`. Outside of commands, nothing is quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(_KEY) == "quiet"


def is_verbose() -> bool:
    """Whether details are logged, so that an error is shown with its traceback too."""
    return logger.isEnabledFor(logging.DEBUG)


def apply(context: click.Context) -> None:
    """Set the level and the form of log lines to what the command line asks for."""
    wanted = context.meta.get(_KEY, "")
    logger.setLevel({"quiet": logging.WARNING, "verbose": logging.DEBUG}.get(wanted, logging.INFO))
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(DETAILED if wanted == "verbose" else PLAIN))


class Verbosity(click.Command):
    """A command or group that takes `--quiet` and `--verbose`, before or after the name of a subcommand."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        """Add the two options to those of the command."""
        super().__init__(*arguments, **more)
        self.params += [
            click.Option(
                ["-q", "--quiet"],
                is_flag=True,
                expose_value=False,
                callback=_choose,
                help="Print only what was asked for, warnings and errors: no progress bars, notes and summaries.",
            ),
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_choose,
                help="Print more: versions, times, where log lines come from, and tracebacks of errors.",
            ),
        ]


def _choose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Keep what was asked for, and apply it."""
    if not value:
        return
    if context.meta.get(_KEY, parameter.name) != parameter.name:
        raise click.UsageError("Give either --quiet or --verbose.", ctx=context)
    context.meta[_KEY] = parameter.name
    apply(context)
    if parameter.name == "verbose":
        logger.debug("Python %s, %s; %s.", platform.python_version(), platform.platform(), _versions())


def _versions() -> str:
    """The packages of `NAMED` that are installed, with their versions; nothing is imported."""
    found = []
    for name in NAMED:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
