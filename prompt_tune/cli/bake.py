"""`prompt-tune bake`: from a run folder to an ultralytics checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import PLACE, Command, torch_device_option
from prompt_tune.cli.terminal import echo, note
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.deployment.bake import Shift

SKIPPED_SHOWN = 5  # unreadable images that are listed


@click.command(name="bake", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, type=PLACE)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write (*.pt).")
@click.option(
    "--images",
    "more_images",
    type=PLACE,
    multiple=True,
    help="An image, a folder of images, or a glob pattern, on which to measure how original detections change, in the "
    "checkpoint itself and in ultralytics' `predict`. Take images that show learned objects too. Can be given several "
    "times, and also as an argument.",
)
@torch_device_option
def command(run: Path, out: Path, images: tuple[str, ...], more_images: tuple[str, ...], device: str) -> None:
    """Write an ultralytics checkpoint from RUN, a folder of `prompt-tune fit`, with original and learned classes set.

    It is for people who stay with ultralytics: YOLOWorld("custom.pt") predicts, tracks and exports with it. There all
    classes guide the neck together, so original boxes and scores change, which they cannot in a bundle.
    """
    from prompt_tune.deployment.bake import bake

    baked = bake(run, out, images=(*more_images, *images) or None, device=device)
    n_learned = len(baked.names) - baked.n_original - baked.n_background
    note(f"Wrote {out}: {baked.n_original} original and {counted(n_learned, 'learned class')}.")
    note("All of them guide the neck there, so original boxes and scores change, which they cannot in a bundle.")
    if baked.shift is None or baked.predicted is None:
        note("To measure how much, give --images FOLDER.")
    else:
        _print(baked.shift)
        _print_predicted(baked.predicted)


def _print(shift: "Shift") -> None:
    """What the joint guide alone changes."""
    for line in shift.skipped[:SKIPPED_SHOWN]:
        echo(f"Skipped: {line}", err=True)
    if len(shift.skipped) > SKIPPED_SHOWN:
        echo(f"Skipped: {counted(len(shift.skipped), 'image')} in all.", err=True)
    images = counted(shift.images, "image")
    if not shift.before:
        echo(f"No original class is detected in {images}; {counted(shift.gained, 'detection')} gained.")
        return
    echo(
        f"{images}, {_changes(shift)} by the joint guide; the scores of the others change by {shift.mean:.4f} on "
        f"average, {shift.largest:.4f} at most."
    )


def _print_predicted(shift: "Shift") -> None:
    """What ultralytics' `predict` shows of it."""
    if not shift.learned:
        echo(
            "In ultralytics' predict, a learned class hides an original one in the same box. These images cannot show "
            "it: no learned class is found in them."
        )
    elif shift.before:
        echo(
            f"In ultralytics' predict at its defaults, {_changes(shift)}, beside "
            f"{counted(shift.learned, 'learned detection')}: it keeps one class per box. See `ultralytics` in "
            "docs/other-tools.md for what keeps them."
        )


def _changes(shift: "Shift") -> str:
    """Counts and shares of original detections."""
    lost, gained = (f"{count} ({count / shift.before:.1%})" for count in (shift.lost, shift.gained))
    return f"{counted(shift.before, 'original detection')}: {lost} lost, {gained} gained"
