"""`prompt-tune data check`: a data set looked over, without a model."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import PLACE, Group, json_option, strict_option
from prompt_tune.cli.terminal import cell, echo, note
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from prompt_tune.datasets.check import DataCheck

SHOWN_IMAGES = 10  # on the contact sheet
TABLE_ROWS = 100  # classes in the table; --json lists all
NAMED = 3  # odd boxes, copies and lines that are named of each kind
QUALITY = 90  # of the sheet, if it is a JPEG
FORMATS = {  # what `samples.Kind` has
    "yolo": "ultralytics",
    "coco": "COCO",
    "voc": "Pascal VOC",
    "labelme": "labelme",
    "label-studio": "Label Studio",
    "fiftyone": "FiftyOne",
    "open-images": "Open Images",
    "cvat": "CVAT for images",
    "table": "a table of boxes",
}


@click.group(name="data", cls=Group)
def command() -> None:
    """Look over labelled images before they are learned from."""


@command.command()
@click.argument("data", metavar="DATA", type=PLACE)
@click.option(
    "--image-size",
    "--imgsz",
    default=640,
    show_default=True,
    type=click.IntRange(32),
    help="Side of the network's input in pixels, in which small boxes are measured.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Also write a contact sheet to this .png or .jpg file: {SHOWN_IMAGES} training images with their boxes.",
)
@strict_option
@json_option
def check(data: str, image_size: int, out: Path | None, strict: bool, as_json: bool) -> None:
    """Say what `fit` would read of DATA: images, boxes, classes, and what looks wrong. No model is loaded.

    DATA is whatever `fit --data` takes. Each image is decoded. Boxes that cover the whole image, are slivers or specks,
    or lie on one another are listed; they may be right. The exit status is 1 if `fit` would refuse the data set.
    """
    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise click.UsageError(f"--out must be a .png or .jpg file. Received: {out}")
    from prompt_tune.cli.progress import stages
    from prompt_tune.datasets.check import check_dataset, shown_samples

    with stages() as progress:
        found, dataset = check_dataset(data, image_size=image_size, strict=strict, progress=progress)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        _print(found, image_size)
    if out is not None:
        from prompt_tune.report.pictures import contact_sheet
        from prompt_tune.runtime.images import save_image

        samples = shown_samples(dataset, SHOWN_IMAGES)
        save_image(out, contact_sheet(samples, dataset.names), quality=QUALITY)
        note(f"Contact sheet of {counted(len(samples), 'training image')}: {out}", err=as_json)


def _print(found: "DataCheck", image_size: int) -> None:
    """Print the tables, and a line for whatever else was found."""
    from rich.console import Console

    console = Console(highlight=False)
    echo(f"{found.source}: {FORMATS[found.kind]}, {counted(len(found.classes), 'class')}")
    _print_splits(console, found)
    _print_classes(console, found, image_size)
    least, median, most = (f"{width} x {height}" for width, height in found.image_sizes)
    echo(f"Image sizes: {least} (smallest), {median} (median), {most} (largest).")
    left_out = [line for split in found.splits.values() for line in split.left_out] + list(found.unreadable)
    _list("Left out", "thing", left_out)
    _list("Copies", "picture", [" = ".join(Path(path).name for path in group) for group in found.copies])
    if found.leaked:
        echo(f"Validation images that are copies of training images: {found.leaked}.")
    for oddity, count in Counter(box.oddity for box in found.odd).most_common():
        boxes = [box for box in found.odd if box.oddity == oddity][:NAMED]
        first = "; ".join(f"{box.name} in {Path(box.image).name}, {box.note}" for box in boxes)
        echo(f"Look at {counted(count, 'box')} that {oddity if count == 1 else _plural(oddity)}: {first}{_more(count)}")
    for hint in found.hints:
        echo(hint)
    if not (left_out or found.copies or found.odd or found.hints):
        echo("Nothing looks wrong.")


def _print_splits(console: "Console", found: "DataCheck") -> None:
    from rich.table import Table

    table = Table("split")
    for label in ("images", "background", "boxes", "ignored", "left out"):
        table.add_column(label, justify="right")
    for name, split in found.splits.items():
        how = " (held out)" if found.held_out and name == "val" else " (cross-validated)" if found.few else ""
        numbers = (split.images, split.background, split.boxes, split.ignored, len(split.left_out))
        table.add_row(name + how, *map(str, numbers))
    console.print(table)


def _print_classes(console: "Console", found: "DataCheck", image_size: int) -> None:
    from rich.table import Table

    table = Table("class")
    for label in ("boxes, train", "images, train", "boxes, val", f"median side at {image_size} px"):
        table.add_column(label, justify="right")
    for row in found.classes[:TABLE_ROWS]:
        side = "-" if row.side is None else f"{row.side:.0f}"
        table.add_row(cell(row.name), str(row.train_boxes), str(row.train_images), str(row.val_boxes), side)
    console.print(table)
    if len(found.classes) > TABLE_ROWS:
        echo(f"... and {counted(len(found.classes) - TABLE_ROWS, 'more class')}; --json lists all.")


def _list(title: str, what: str, lines: list[str]) -> None:
    """Print how many there are, and the first few."""
    if lines:
        echo(f"{title}: {counted(len(lines), what)}: {'; '.join(lines[:NAMED])}{_more(len(lines))}")


def _more(count: int) -> str:
    """How many are not named."""
    return f"; and {count - NAMED} more (--json lists all)" if count > NAMED else ""


def _plural(oddity: str) -> str:
    """An oddity of several boxes."""
    words = {"covers its": "cover their", "is a sliver": "are slivers", "is a speck": "are specks", "lies on": "lie on"}
    for one, several in words.items():
        oddity = oddity.replace(one, several)
    return oddity.replace("their whole image", "their whole images")
