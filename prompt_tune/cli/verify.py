"""`prompt-tune verify`: whether learned vocabularies change a bundle's original detections. Needs no torch."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import (
    Command,
    Number,
    device_option,
    json_option,
    learned_option,
    recursive_option,
    source_options,
)
from prompt_tune.cli.terminal import cell, echo
from prompt_tune.errors import PromptTuneError
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from prompt_tune.evaluation.verify import Verification

REGRESSION = 3  # exit status of a check that found one
TABLE_ROWS = 20  # false alarms and collisions listed in a table; --json lists all
UNLABELLED = (
    "The images have no labels: these are false alarms only if none of the images shows an object of a learned class."
)


@click.command(name="verify", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@source_options(
    "--images",
    "images",
    "An image, a folder of images, or a glob pattern. The images need no labels, but must not show any object of a "
    "learned class: every learned detection in them counts as a false alarm.",
    missing="the images to check",
)
@learned_option()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A data set with labels of original classes, in any format that `fit` reads. Their average precision on its "
    "validation images is measured before and after. Needs PyYAML, which comes with [fit].",
)
@click.option(
    "--max-false-alarms",
    type=Number(min=0),
    metavar="N",
    help="How many false alarms per 1,000 images are allowed. With more, the exit status is 3.",
)
@recursive_option
@click.option("--strict", is_flag=True, help="Refuse images and a data set of which anything would be left out.")
@device_option
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the result to this HTML file, with pictures of the false alarms that have the highest scores. The "
    "page is self-contained.",
)
@json_option
def command(
    bundle: Path,
    images: tuple[str, ...],
    learned: tuple[Path, ...],
    data: Path | None,
    max_false_alarms: float | None,
    recursive: bool,
    strict: bool,
    device: str,
    page: Path | None,
    as_json: bool,
) -> None:
    """Check BUNDLE, a folder of `prompt-tune export`, before it is deployed.

    Runs ONNX Runtime with the original vocabulary alone, with each learned vocabulary (the bundle's own and those of
    --learned), and with all of them in two orders, and compares the original detections bit by bit. The exit status is
    3 if a single bit changed or there are more false alarms than --max-false-alarms, even if the --report page cannot
    be written.

    Counts false alarms (learned detections above their thresholds, in images that show no learned object) and
    collisions (a learned and an original detection above their thresholds on the same box, with IoU 0.7 or more).
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.evaluation.verify import verify
    from prompt_tune.report.page import write_verification_page

    with stages() as progress:
        result = verify(
            bundle,
            images,
            learned=learned,
            data=data,
            max_false_alarms=max_false_alarms,
            device=device,
            recursive=recursive,
            strict=strict,
            progress=progress,
        )
    for reason in result.skipped:
        echo(f"Skipped: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        _print(result)
    if page is not None:
        try:
            write_verification_page(page, result, bundle, learned)
        except PromptTuneError as error:
            if not result.failed:
                raise
            echo(f"Error: {error}", err=True)  # the regression decides the exit status
    if result.failed:
        sys.exit(REGRESSION)


def _print(result: "Verification") -> None:
    """Print the tables, then the verdict in one line."""
    from rich.console import Console

    console = Console(highlight=False)
    _print_retention(console, result)
    _print_counts(console, result)
    echo(result.verdict.replace("Failed", "FAILED", 1) if result.failed else result.verdict)


def _print_retention(console: "Console", result: "Verification") -> None:
    """Print the changed bits of each setting, and average precision if there are labels."""
    from rich.table import Table

    table = Table("loaded beside the original vocabulary")
    table.add_column("original bits changed", justify="right")
    for setting in result.settings:
        style = "red" if setting.bits_changed else None
        table.add_row(cell(", ".join(setting.loaded)), str(setting.bits_changed), style=style)
    console.print(table)
    if result.original_ap_before is None:
        return
    table = Table("original classes", f"alone, {counted(result.labelled_images, 'labelled image')}", "with all loaded")
    for name, before, after in (
        ("AP", result.original_ap_before, result.original_ap_after),
        ("AP50", result.original_ap50_before, result.original_ap50_after),
    ):
        table.add_row(name, f"{before:.4f}", f"{after:.4f}")
    console.print(table)


def _print_counts(console: "Console", result: "Verification") -> None:
    """Print false alarms and collisions, the most frequent first."""
    from rich.table import Table

    alarms = Table("vocabulary", "learned class")
    alarms.add_column("false alarms", justify="right")
    alarms.add_column("per 1,000 images", justify="right")
    for row in result.false_alarms[:TABLE_ROWS]:
        rate = 1000 * row.count / result.images
        alarms.add_row(cell(row.vocabulary), cell(row.learned), str(row.count), f"{rate:.1f}")
    collisions = Table("vocabulary", "learned class", "on the box of original class")
    collisions.add_column("collisions", justify="right")
    for pair in result.collisions[:TABLE_ROWS]:
        collisions.add_row(cell(pair.vocabulary), cell(pair.learned), cell(pair.original), str(pair.count))
    for what, table, number in (
        ("false alarms", alarms, len(result.false_alarms)),
        ("collisions", collisions, len(result.collisions)),
    ):
        if number:
            console.print(table)
        if number > TABLE_ROWS:
            echo(f"... and {counted(number - TABLE_ROWS, 'more row')} of {what}; --json lists all.")
    pairs = counted(sum(collision.count for collision in result.collisions), "collision")
    skipped = f" ({len(result.skipped)} more skipped)" if result.skipped else ""
    images = f"{counted(result.images, 'image')}{skipped}"
    echo(f"{images}: {result.false_alarms_per_1000:.1f} false alarms per 1,000 images, {pairs}.")
    echo(UNLABELLED)
