"""`prompt-tune detect`: run a bundle on images, videos, cameras and streams with ONNX Runtime. Needs no torch."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import device_option

if TYPE_CHECKING:
    from prompt_tune.media.annotate import Annotated

TABLE_ROWS = 20  # classes in the table; the rest is one line
SCORE = click.FloatRange(0, 1)
NAMES = "NAME, or LABEL:NAME in one vocabulary, or LABEL:* for all of it. Can be given several times."


@click.command(name="detect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--source",
    required=True,
    help="An image or video, a folder of them, a glob pattern in quotes, the number of a camera, or an address such as "
    "rtsp://HOST/PATH.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for what is saved. Needed without --stream.")
@click.option(
    "--save",
    multiple=True,
    type=click.Choice(["pictures", "coco", "yolo", "csv"]),
    help="What to write to --out: annotated pictures and videos, detections.json, a YOLO data set to learn from, "
    "detections.csv. Can be given several times; default: pictures and coco.",
)
@click.option("--stream", is_flag=True, help="Write a line of JSON to standard output for each image or frame at once.")
@click.option(
    "--every", default=1, show_default=True, type=click.IntRange(1), help="Take each N-th frame of a video or stream."
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds after which a camera or stream that sends nothing is an error.",
)
@click.option(
    "--learned",
    multiple=True,
    type=click.Path(path_type=Path),
    help="One more vocabulary file for the same detector; its file name is its label. Can be given several times.",
)
@click.option("--bundled/--no-bundled", default=True, show_default=True, help="Load the bundle's learned vocabulary.")
@click.option("--show", multiple=True, metavar="NAME", help=f"Show this class only: {NAMES}")
@click.option("--hide", multiple=True, metavar="NAME", help=f"Do not show this class: {NAMES}")
@device_option
@click.option("--iou", type=SCORE, help="Overlap above which the weaker box goes; default: 0.7, and each class's own.")
@click.option("--conf", type=SCORE, help="Score above which a detection counts; default: each class's own threshold.")
@click.option("--original-conf", type=SCORE, help="The same for the original vocabulary; goes before --conf.")
@click.option("--learned-conf", type=SCORE, help="The same for all other vocabularies; goes before --conf.")
@click.option("--image-size", type=int, help="Side of the network's input in pixels; default: the bundle's.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
def command(
    bundle: Path,
    source: str,
    out: Path | None,
    save: tuple[str, ...],
    stream: bool,
    every: int,
    timeout: float,
    learned: tuple[Path, ...],
    bundled: bool,
    show: tuple[str, ...],
    hide: tuple[str, ...],
    device: str,
    iou: float | None,
    conf: float | None,
    original_conf: float | None,
    learned_conf: float | None,
    image_size: int | None,
    threads: int,
) -> None:
    """Detect the classes of BUNDLE, a folder of `prompt-tune export`, in images, videos, cameras and streams.

    Writes to --out a picture for each image (and a video for each video), original classes in thin muted boxes, learned
    ones in thick bright ones, and detections.json in COCO's format, where each annotation says which vocabulary it is
    from. Ctrl-C ends it after the frame at hand, and what is written is whole.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.errors import DataError, VocabularyError
    from prompt_tune.media.annotate import DEFAULT_OUTPUTS, annotate
    from prompt_tune.media.sources import open_source
    from prompt_tune.runtime.detections import choose_classes
    from prompt_tune.runtime.detector import Detector

    if out is None and (save or not stream):
        raise click.UsageError("Missing option '--out', the folder to write to; only --stream alone does without.")
    opened = open_source(source, every=every, timeout=timeout)
    detector = Detector(
        bundle,
        device=device,  # type: ignore[arg-type]  # click.Choice has checked it
        learned=learned,
        use_bundled=bundled,
        image_size=image_size,
        threads=threads,
    )
    try:
        choose_classes(detector.classes, show=show or None, hide=hide)
    except VocabularyError as error:
        raise click.UsageError(str(error)) from error
    lines = sys.stdout if stream else None  # before the progress bar puts its own in its place
    with _stoppable() as stop, stages() as progress:
        result = annotate(
            detector,
            opened,
            out=out,
            save=save or (DEFAULT_OUTPUTS if out else ()),  # type: ignore[arg-type]  # click.Choice has checked them
            lines=lines,
            iou=iou,
            original_conf=conf if original_conf is None else original_conf,
            learned_conf=conf if learned_conf is None else learned_conf,
            show=show or None,
            hide=hide,
            progress=None
            if stream and sys.stdout.isatty()
            else progress,  # lines and a bar would write over one another
            stop=stop,
        )
    if stream:
        _leave_quietly()
    _print(result, out, to_errors=stream)
    if result.broken:
        raise DataError(result.broken)
    if stop() and not opened.live:
        raise click.Abort  # not all was looked at, and the exit status says so


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or the system asks the process to end; the second time ends it where it stands."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_quietly() -> None:
    """Where nobody reads standard output any more, Python would complain about it at its end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(result: "Annotated", out: Path | None, *, to_errors: bool) -> None:
    """A line for each skipped image, a small table, and a summary in one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prompt_tune.runtime.detections import ORIGINAL

    for reason in result.skipped:
        click.echo(f"Skipped: {reason}", err=True)
    if result.detections:
        table = Table("vocabulary", "class", box=None, pad_edge=False)
        table.add_column("detections", justify="right")
        table.add_column("images", justify="right")
        ranked = sorted(result.detections.items(), key=lambda item: (item[0][0] == ORIGINAL, -item[1]))  # learned first
        for key, count in ranked[:TABLE_ROWS]:
            label, name = key
            table.add_row(Text(label), Text(name), str(count), str(result.images_with[key]))  # Text: names may have [ ]
        Console(stderr=to_errors).print(table)
        if len(ranked) > TABLE_ROWS:
            click.echo(f"... and {len(ranked) - TABLE_ROWS} classes more.", err=to_errors)
    counts = ((result.images, "image"), (result.frames, "frame"))
    seen = " and ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count)
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    missed = f", {result.missed} frames missed" if result.missed else ""
    place = f": {out}" if out else ""
    click.echo(f"{sum(result.detections.values())} detections in {seen}{skipped}{missed}{place}", err=to_errors)
