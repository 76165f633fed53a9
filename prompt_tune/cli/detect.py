"""`prompt-tune detect`: runs a bundle on images, videos, cameras and streams with ONNX Runtime, without torch."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

import click

from prompt_tune.cli.options import (
    NAMES,
    PLACE,
    Command,
    Number,
    bundled_option,
    device_option,
    image_size_option,
    json_option,
    learned_option,
    recursive_option,
    threshold_options,
)
from prompt_tune.cli.terminal import cell, echo
from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.contract import MOST_BATCH
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.media.annotate import Annotated

TABLE_ROWS = 20  # classes in the table; one line counts the rest


@click.command(name="detect", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, type=PLACE)
@click.option(
    "--source",
    "more_sources",
    type=PLACE,
    multiple=True,
    help="An image or video, a folder of them, a glob pattern, the number of a camera, or an address such as "
    "rtsp://HOST/PATH. Can be given several times, and also as an argument, as in: detect BUNDLE photos/*.jpg",
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
@learned_option()
@bundled_option
@click.option(
    "--show", "--classes", "show", multiple=True, metavar="NAME", help=f"Show, save and label only this class: {NAMES}"
)
@click.option("--hide", multiple=True, metavar="NAME", help=f"Do not show this class: {NAMES}")
@device_option
@threshold_options
@click.option(
    "--overlap",
    type=click.Choice(["keep", "learned", "score"]),
    default="keep",
    show_default=True,
    help="What becomes of an original and a learned box on the same object (IoU 0.7 or more). learned: the original "
    "one is hidden. score: the one that is less far above its class's threshold. Hidden ones stay in JSON and "
    "CSV, marked.",
)
@click.option(
    "--slice",
    "slice_size",
    type=click.IntRange(32),
    metavar="PIXELS",
    help="For small objects: also look at slices of the image with this side, and merge what is found.",
)
@click.option(
    "--slice-overlap",
    type=Number(0, 0.9),
    help="Share of a slice that the next one sees too; default: 0.2. Needs --slice.",
)
@click.option(
    "--track",
    is_flag=True,
    help="Number the objects in videos, cameras and streams, each class for itself. Needs the extra `track`.",
)
@image_size_option
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
    more_sources: tuple[str, ...],
    recursive: bool,
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
    overlap: Literal["keep", "learned", "score"],
    slice_size: int | None,
    slice_overlap: float | None,
    track: bool,
    image_size: int | None,
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
    from prompt_tune.runtime.slices import Slices

    if not sources and not more_sources:
        raise click.UsageError("Missing option '--source': what to detect in.")
    if out is None and (save or not stream):
        raise click.UsageError(
            "Missing option '--out', the folder to write to. Only --stream without --save needs none."
        )
    if stream and as_json:
        raise click.UsageError("--stream prints JSON line by line, and --json the summary alone. Give one of them.")
    if slice_size is None and slice_overlap is not None:
        raise click.UsageError("--slice-overlap says how far slices overlap, and needs --slice, their size.")
    slices = None
    if slice_size is not None:
        slices = Slices(slice_size) if slice_overlap is None else Slices(slice_size, slice_overlap)
    opened = open_source(
        (*more_sources, *sources),
        every=every,
        timeout=timeout,
        recursive=recursive,
        without=out,
        whole=slices is not None,
    )
    detector = Detector(
        bundle,
        device=device,
        learned=learned,
        use_bundled=bundled,
        image_size=image_size,
        threads=threads,
    )
    try:
        choose_classes(detector.classes, show=show or None, hide=hide)
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
            iou=iou,
            original_conf=conf if original_conf is None else original_conf,
            learned_conf=conf if learned_conf is None else learned_conf,
            show=show or None,
            hide=hide,
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
