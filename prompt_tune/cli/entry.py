"""The group of all commands, and the entry point of the process."""

import importlib
import io
import logging
import sys
import traceback
import warnings

import click
from click.shell_completion import CompletionItem, FishComplete, add_completion_class

from prompt_tune.cli import verbosity
from prompt_tune.errors import PromptTuneError
from prompt_tune.version import __version__, install

# command -> (module, one line of help), so that `--help` imports none of the modules
COMMANDS = {
    "demo": ("prompt_tune.cli.demo", "Teach `tiny` six new classes, export it, detect, and print the results."),
    "data": ("prompt_tune.cli.data", "Look over a data set without a model: counts, copies, suspicious boxes."),
    "fit": ("prompt_tune.cli.fit", "Learn prompts for your classes from labelled images."),
    "export": ("prompt_tune.cli.export", "Write a bundle: the ONNX graph, the original and the learned vocabulary."),
    "bake": ("prompt_tune.cli.bake", "Write an ultralytics checkpoint with original and learned classes built in."),
    "detect": ("prompt_tune.cli.detect", "Run a bundle on images, videos, cameras and streams with ONNX Runtime."),
    "label": ("prompt_tune.cli.label", "Detect in any number of images, on one machine or a cluster; writes Parquet."),
    "convert": ("prompt_tune.cli.convert", "Turn what `label` wrote into COCO JSON or a YOLO data set."),
    "serve": ("prompt_tune.cli.serve", "Answer requests over HTTP with a bundle."),
    "val": ("prompt_tune.cli.val", "Measure a run or a bundle on a data set: COCO metrics, also for each class."),
    "verify": ("prompt_tune.cli.verify", "Check that learned vocabularies change no original detection of a bundle."),
    "push": ("prompt_tune.cli.push", "Upload a run or a bundle to the Hugging Face Hub, with a model card."),
    "mine": ("prompt_tune.cli.mine", "Find the unlabelled images that are worth labelling next."),
    "vocab": ("prompt_tune.cli.vocab", "Build, show, compare, edit and convert vocabulary files."),
    "doctor": ("prompt_tune.cli.doctor", "Say what is missing here, and try the whole chain on a checkpoint."),
    "sample": ("prompt_tune.cli.sample", "Write the sample data set: synthetic scenes with six new classes."),
    "pretrain": (
        "prompt_tune.cli.pretrain",
        "Train `tiny`, the small YOLO-World in this package, from scratch.",
    ),
}
# import names of what the extra `fit` installs; an inference box has none of it
FIT_PACKAGES = {"torch", "torchvision", "ultralytics", "open_clip", "onnx", "faster_coco_eval", "matplotlib", "yaml"}


class LazyGroup(verbosity.Verbosity, click.Group):
    """Imports a command's module only when that command runs, so that `--help` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of that name: the attribute `command` of its module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and options that begin with a text, without an import of any command."""
        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return found + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands of `--help` from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@add_completion_class
class Fish(FishComplete):
    """Completion in fish. click's own script ends the help of a command or option at its first comma."""

    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


class _EchoHandler(logging.Handler):
    """Writes log lines to standard error, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        _say(self.format(record))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prompt-tune")
@click.pass_context
def command(context: click.Context) -> None:
    """Teach YOLO-World new classes without changing what it knows.

    Only context vectors in front of the class names are learned. The detector and its text tower stay frozen. The
    result is a small vocabulary file, which one ONNX graph takes as an input.
    """
    logger = logging.getLogger("prompt_tune")
    if not logger.handlers:
        logger.addHandler(_EchoHandler())
    verbosity.apply(context)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a broken EXIF tag counts as none, which needs no word
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # an image that cannot be read gets a line of ours
    logger.propagate = False  # what other libraries set up at the root does not matter here


def main() -> None:
    """Entry point. Exit status: 0 done, 1 error, 2 wrong usage, 3 a check found a regression."""
    for stream in (sys.stdout, sys.stderr):
        _escape_what_does_not_fit(stream)
    try:
        sys.exit(command.main(standalone_mode=False))  # the status of ctx.exit(), or None: done
    except click.Abort:
        _say("Stopped.")
        sys.exit(130)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        _say(*shown.getvalue().rstrip("\n").split("\n"))
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in FIT_PACKAGES:
            raise
        _say(f"Error: {package} is not installed, and this needs it: {install('fit')}")
        sys.exit(1)
    except PromptTuneError as error:
        _trace()
        _say(f"Error: {error}")
        sys.exit(1)
    except OSError as error:  # of a path that no rule of ours has caught
        _trace()
        place = f"`{error.filename}`: " if error.filename is not None else ""
        _say(f"Error: {place}{error.strerror or error}. Check the path.")
        sys.exit(1)


def _say(*lines: str) -> None:
    """Print lines to standard error, see `terminal.echo`."""
    from prompt_tune.cli.terminal import echo

    echo(*lines, err=True)


def _trace() -> None:
    """With `--verbose`, print where the error that is handled comes from."""
    if verbosity.is_verbose():
        _say(*traceback.format_exc().splitlines())


def _escape_what_does_not_fit(stream: object) -> None:
    """Let a stream write characters that its encoding lacks as escapes such as \\u8eca: class names may have any."""
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream.errors != "surrogateescape" or stream.encoding.lower() != "utf-8":  # that pair writes every file name
        stream.reconfigure(errors="backslashreplace")
