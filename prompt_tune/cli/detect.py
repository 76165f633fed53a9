"""`prompt-tune detect`: runs a bundle on images, videos, cameras and streams with ONNX Runtime, without torch."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import click

from prompt_tune.cli.options import (
    Command,
    Number,
    detector_options,
    json_option,
    recursive_option,
    slice_options,
    source_options,
    wanted_options,
)
from prompt_tune.cli.terminal import cell, echo
from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.contract import MOST_BATCH
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.media.annotate import Annotated
    from prompt_tune.runtime.slices import Slices

TABLE_ROWS = 20  # classes in the table; one line counts the rest


@click.command(name="detect", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@source_options(
    "--source",
    "sources",
    "An image or video, a folder of them, a glob pattern, the number of a camera, or an address such as rtsp://HOST/PATH.",
    missing="what to detect in",
)
@recursive_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder for what is saved. Needed without --stream.")
@click.option(
    "--save",
    multiple=True,
    type=click.Choice(["pictures", "coco", "yolo", "csv", "label-studio", "cvat", "labelme"]),
    help="What to write to --out: annotated pictures and videos, detections.json, a YOLO data set to learn from "
    "(labels of learned classes only, unless --show names others), detections.csv, or images with such labels to "
    "correct in Label Studio, CVAT or labelme. Can be given several times; "
    "default: pictures and coco.",
)
@click.option("--stream", is_flag=True, help="Write one line of JSON per image or frame to standard output, at once.")
@click.option(
    "--every", default=1, show_default=True, type=click.IntRange(1), help="Take every N-th frame of a video or stream."
)
@click.option(
    "--timeout",
    default=10.0,
    show_default=True,
    type=Number(0.1),
    help="Seconds after which a camera or stream that sends nothing is an error.",
)
@detector_options
@wanted_options("Show, save and label", "show")
@click.option(
    "--overlap",
    type=click.Choice(["keep", "learned", "score"]),
    default="keep",
    show_default=True,
    help="What becomes of an original and a learned box on the same object (IoU 0.7 or more). learned: the original "
    "one is hidden. score: the one that is less far above its class's threshold. Hidden ones stay in JSON and "
    "CSV, marked.",
)
@slice_options
@click.option(
    "--track",
    is_flag=True,
    help="Number the objects in videos, cameras and streams, each class for itself. Needs the extra `track`.",
)
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1, MOST_BATCH),
    help="Images that go through the network at once; with --slice, slices of an image. Otherwise, frames of a camera "
    "or stream go one by one.",
)
@click.option(
    "--threads",
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="CPU threads; 0: all cores.",
)
@json_option
def command(
    bundle: Path,
    sources: tuple[str, ...],
    recursive: bool,
    out: Path | None,
    save: tuple[str, ...],
    stream: bool,
    every: int,
    timeout: float,
    loading: dict[str, Any],
    wanted: dict[str, Any],
    overlap: Literal["keep", "learned", "score"],
    slices: "Slices | None",
    track: bool,
    batch: int,
    threads: int,
    as_json: bool,
) -> None:
    """Detect the classes of BUNDLE, a folder from `prompt-tune export`, in SOURCES: images, videos, cameras, streams.

    Writes to --out an annotated picture for each image (a video for each video), with original classes in thin muted
    boxes and learned classes in thick bright ones, and detections.json in COCO's format, where each annotation names
    its vocabulary. Ctrl-C ends the run after the current frame; the files are then complete up to that frame.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.errors import DataError, VocabularyError
    from prompt_tune.media.annotate import DEFAULT_OUTPUTS, annotate
    from prompt_tune.media.sources import open_source
    from prompt_tune.runtime.detections import choose_classes
    from prompt_tune.runtime.detector import Detector

    if out is None and (save or not stream):
        raise click.UsageError(
            "Missing option '--out', the folder to write to. Only --stream without --save needs none."
        )
    if stream and as_json:
        raise click.UsageError("--stream prints JSON line by line, and --json the summary alone. Give one of them.")
    opened = open_source(
        sources, every=every, timeout=timeout, recursive=recursive, without=out, whole=slices is not None
    )
    detector = Detector(bundle, threads=threads, **loading)
    try:
        choose_classes(detector.classes, show=wanted["show"], hide=wanted["hide"])
    except VocabularyError as error:
        raise click.UsageError(str(error)) from error
    lines = sys.stdout if stream else None  # here, because the progress bar replaces sys.stdout
    on_terminal = stream and sys.stdout.isatty()  # lines and a progress bar would overwrite each other there
    with _stoppable() as stop, stages() as progress:
        result = annotate(
            detector,
            opened,
            out=out,
            save=save or (DEFAULT_OUTPUTS if out else ()),  # type: ignore[arg-type]  # click.Choice has checked them
            lines=lines,
            **wanted,
            overlap=overlap,
            slices=slices,
            track=track,
            batch=batch,
            progress=None if on_terminal else progress,
            stop=stop,
        )
    if stream:
        _leave_quietly()
    for reason in result.skipped:
        echo(f"Skipped: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(_as_json(result, out), indent=1))
    elif not is_quiet():
        _print(result, out, to_errors=stream)
    if result.broken:
        raise DataError(result.broken)
    if stop() and not opened.live:
        raise click.Abort  # the exit status says that the source was not finished


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed or the system asked the process to end. The second time ends it at once."""
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
    """Keep Python from complaining at exit when nobody reads standard output any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_json(result: "Annotated", out: Path | None) -> dict[str, object]:
    """What the table and the summary line say."""
    counts = [
        {"vocabulary": label, "class": name, "detections": count, "images": result.images_with[label, name]}
        for (label, name), count in result.detections.items()
    ]
    return {
        "images": result.images,
        "frames": result.frames,
        "missed_frames": result.missed,
        "skipped": list(result.skipped),
        "classes": counts,
        "hidden": result.hidden,
        "out": None if out is None else str(out),
    }


def _print(result: "Annotated", out: Path | None, *, to_errors: bool) -> None:
    """Print a small table and a summary line."""
    from rich.console import Console
    from rich.table import Table

    from prompt_tune.runtime.detections import ORIGINAL

    if result.detections:
        table = Table("vocabulary", "class", box=None, pad_edge=False)
        table.add_column("detections", justify="right")
        table.add_column("images", justify="right")
        ranked = sorted(result.detections.items(), key=lambda item: (item[0][0] == ORIGINAL, -item[1]))  # learned first
        for key, count in ranked[:TABLE_ROWS]:
            label, name = key
            table.add_row(cell(label), cell(name), str(count), str(result.images_with[key]))  # Text: names may have [ ]
        Console(stderr=to_errors).print(table)
        if len(ranked) > TABLE_ROWS:
            echo(f"... and {counted(len(ranked) - TABLE_ROWS, 'more class')}.", err=to_errors)
    counts = ((result.images, "image"), (result.frames, "frame"))
    seen = " and ".join(counted(count, what) for count, what in counts if count)
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    missed = f", {counted(result.missed, 'frame')} missed" if result.missed else ""
    place = f": {out}" if out else ""
    total = counted(sum(result.detections.values()), "detection")
    hidden = f" ({result.hidden} more hidden)" if result.hidden else ""
    echo(f"{total}{hidden} in {seen}{skipped}{missed}{place}", err=to_errors)
