"""Options that several commands share."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from prompt_tune.cli.verbosity import Verbosity
from prompt_tune.errors import ProviderError
from prompt_tune.runtime.providers import check_device_name

NAMES = "NAME, LABEL:NAME for one vocabulary, or LABEL:* for all of its classes. Can be given several times."
Function = TypeVar("Function", bound=Callable[..., Any])
DEVICE_HELP = (
    "cpu; cuda: an NVIDIA GPU, or an error that says what is missing; cuda:1 or 1: the second GPU; auto: cuda if "
    "it works, otherwise cpu, with a message; openvino: Intel's OpenVINO, for a bundle of `export --slots`."
)


class Place(click.types.StringParamType):
    """A text that may be the path of a file or folder: shells complete it as one."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files and folders that begin with a text, which the shell itself looks for."""
        return [CompletionItem(incomplete, type="file")]


PLACE = Place()


class Number(click.FloatRange):
    """A number in a range. click's own takes "nan" for every range, and "inf" for those without an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, if it is finite and in the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


SCORE = Number(0, 1)


def _device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """A device that ONNX Runtime knows by name; whether it is there shows when a session is opened."""
    try:
        check_device_name(value)
    except ProviderError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error
    return value


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    callback=_device,
    help=f"Where ONNX Runtime runs. {DEVICE_HELP}",
)
torch_device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Torch device: cpu, cuda, cuda:1, or 1 for the same.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
strict_option = click.option("--strict", is_flag=True, help="Refuse a data set of which anything would be left out.")
model_option = click.option(
    "--model",
    type=PLACE,
    required=True,
    help="The detector: 'tiny', a YOLO-World checkpoint (.pt), or an official name such as yolov8s-worldv2.pt.",
)
text_tower_option = click.option(
    "--text-tower", default=None, help="'local-dir:FOLDER' or open_clip's NAME:TAG. Default: the model's own."
)
recursive_option = click.option(
    "--recursive/--no-recursive",
    default=True,
    show_default=True,
    help="Whether folders are read with their subfolders.",
)


def source_options(option: str, name: str, text: str, *, missing: str) -> Callable[[Function], Function]:
    """Adds what is looked at, as arguments and as an option. The command gets both together.

    Args:
        option: Such as "--source".
        name: Of the arguments, and of what the command gets.
        text: What can be given, for the help of the option.
        missing: What the error asks for if nothing is given.
    """

    def add(function: Function) -> Function:
        @wraps(function)
        def command(**values: Any) -> Any:
            given = (*values.pop(f"more_{name}"), *values.pop(name))
            if not given:
                raise click.UsageError(f"Missing option '{option}': {missing}.")
            return function(**values, **{name: given})

        several = f"{text} Can be given several times, and also as an argument."
        with_option = click.option(option, f"more_{name}", type=PLACE, multiple=True, help=several)(command)
        return cast(Function, click.argument(name, nargs=-1, type=PLACE)(with_option))

    return add


def detector_options(function: Function) -> Function:
    """Adds how a bundle is loaded. The command gets it as `loading`, keyword arguments of `Detector`."""

    @wraps(function)
    def command(**values: Any) -> Any:
        loading = {name: values.pop(name) for name in ("learned", "use_bundled", "device", "image_size")}
        return function(**values, loading=loading)

    options = (
        learned_option(),
        click.option(
            "--bundled/--no-bundled",
            "use_bundled",
            default=True,
            show_default=True,
            help="Load the bundle's learned vocabulary.",
        ),
        device_option,
        click.option(
            "--image-size", "--imgsz", type=int, help="Side of the network's input in pixels; default: the bundle's."
        ),
    )
    return _with(options, command)


def wanted_options(only: str, but: str) -> Callable[[Function], Function]:
    """Adds what counts as a detection. The command gets it as `wanted`, keyword arguments of `Detector.detect`.

    Args:
        only: What happens to classes that are asked for, such as "Show", for the help.
        but: The same as part of a sentence, such as "show".
    """

    def add(function: Function) -> Function:
        @wraps(function)
        def command(**values: Any) -> Any:
            wanted = {name: values.pop(name) for name in ("show", "hide", "iou", "original_conf", "learned_conf")}
            conf = values.pop("conf")
            for name in ("original_conf", "learned_conf"):
                wanted[name] = conf if wanted[name] is None else wanted[name]
            return function(**values, wanted={**wanted, "show": wanted["show"] or None})

        options = (
            click.option(
                "--show", "--classes", "show", multiple=True, metavar="NAME", help=f"{only} only this class: {NAMES}"
            ),
            click.option("--hide", multiple=True, metavar="NAME", help=f"Do not {but} this class: {NAMES}"),
            click.option(
                "--iou",
                type=SCORE,
                help="Overlap above which the lower-scoring box is dropped; default: 0.7, and then the limit of each "
                "class.",
            ),
            click.option(
                "--conf",
                type=SCORE,
                help="Score above which a detection counts; default: each class's own threshold.",
            ),
            click.option("--original-conf", type=SCORE, help="The same for the original vocabulary; overrides --conf."),
            click.option("--learned-conf", type=SCORE, help="The same for all other vocabularies; overrides --conf."),
        )
        return _with(options, command)

    return add


def slice_options(function: Function) -> Function:
    """Adds how images are cut for small objects. The command gets it as `slices`, `Slices` or None."""

    @wraps(function)
    def command(slice_size: int | None, slice_overlap: float | None, **values: Any) -> Any:
        from prompt_tune.runtime.slices import Slices

        if slice_size is None and slice_overlap is not None:
            raise click.UsageError("--slice-overlap says how far slices overlap, and needs --slice, their size.")
        return function(**values, slices=Slices.of(slice_size, slice_overlap))

    options = (
        click.option(
            "--slice",
            "slice_size",
            type=click.IntRange(32),
            metavar="PIXELS",
            help="For small objects: also look at slices of the image with this side, and merge what is found.",
        ),
        click.option(
            "--slice-overlap",
            type=Number(0, 0.9),
            help="Share of a slice that the next one sees too; default: 0.2. Needs --slice.",
        ),
    )
    return _with(options, command)


def _with(options: Sequence[Callable[[Any], Any]], function: Any) -> Any:
    """A function with options, in the order of the help."""
    for option in reversed(options):
        function = option(function)
    return function


def learned_option(note: str = "") -> Callable[[Function], Function]:
    """The option for vocabularies that are loaded beside the bundle's own.

    Args:
        note: What else its help says.
    """
    words = ("Another vocabulary file for the same detector. NAME is its label; default: its file name.", note)
    return click.option(
        "--learned",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="[NAME=]FILE",
        help=" ".join(filter(None, (*words, "Can be given several times."))),
    )


class Command(Verbosity):
    """A command that refuses an option given twice. Click would take the last one and drop the others in silence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse options that were given more often than they can be, then parse as usual."""
        if ctx.resilient_parsing:  # a shell completes a line that is not finished
            return super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(part for part in order if isinstance(part, click.Option)).items():
            repeatable = option.multiple or option.count or (option.is_flag and not option.secondary_opts)
            if count > 1 and not repeatable:
                names = "/".join((*option.opts, *option.secondary_opts))
                raise click.UsageError(f"Option '{names}' can be given only once. Received: {count} times.", ctx=ctx)
        return super().parse_args(ctx, args)


class Group(Verbosity, click.Group):
    """A group of such commands."""

    command_class = Command
