"""The command line: `prompt-tune COMMAND`. Each command is a thin shell over one function that can be imported."""

import importlib
import logging
import sys

import click

from prompt_tune.errors import PromptTuneError
from prompt_tune.version import __version__

# command -> (module, one line of help): `--help` shows these without importing a module that is heavy
COMMANDS = {
    "demo": ("prompt_tune.cli.demo", "Teach `tiny` six classes, export, detect, and print what came of it."),
    "fit": ("prompt_tune.cli.fit", "Learn context vectors for your classes from labelled images."),
    "export": ("prompt_tune.cli.export", "Write a bundle: ONNX graph, original and learned vocabulary."),
    "bake": ("prompt_tune.cli.bake", "Write an ultralytics checkpoint with original and learned classes set."),
    "detect": ("prompt_tune.cli.detect", "Run a bundle on images with ONNX Runtime."),
    "val": ("prompt_tune.cli.val", "Measure a run or a bundle on a data set: COCO metrics, a class at a time."),
    "verify": ("prompt_tune.cli.verify", "Check that learned vocabularies change no original detection of a bundle."),
    "vocab": ("prompt_tune.cli.vocab", "Build, show and edit vocabulary files."),
    "sample": ("prompt_tune.cli.sample", "Write the sample data set: synthetic scenes with six new classes."),
    "pretrain": ("prompt_tune.cli.pretrain", "Make `tiny`, the small YOLO-World that ships with the package, again."),
}
# what the extra `fit` brings, by import name; an inference box has none of them
FIT_PACKAGES = {"torch", "torchvision", "ultralytics", "open_clip", "onnx", "faster_coco_eval", "matplotlib", "yaml"}


class LazyGroup(click.Group):
    """Imports a command's module only when that command runs, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; its module holds it under the attribute `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in `--help`, from the table above: nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


class _EchoHandler(logging.Handler):
    """Log lines on standard error, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line."""
        click.echo(self.format(record), err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prompt-tune")
def command() -> None:
    """Teach YOLO-World new classes without touching what it knows.

    Only context vectors in front of the class names are learned; the detector and its text tower stay frozen, and what
    is learned is a small vocabulary file that one ONNX graph takes as an input.
    """
    logger = logging.getLogger("prompt_tune")
    if not logger.handlers:
        logger.addHandler(_EchoHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # other libraries log to the root as they like


def main() -> None:
    """Entry point. Exit status: 0 done, 1 error, 2 usage, 3 a check found a regression."""
    try:
        sys.exit(command.main(standalone_mode=False))  # the status of ctx.exit(), or None: done
    except click.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in FIT_PACKAGES:
            raise
        click.echo(f"Error: {package} is not installed, and this needs it: pip install 'prompt-tune[fit]'", err=True)
        sys.exit(1)
    except PromptTuneError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
