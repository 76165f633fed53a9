"""`prompt-tune detect`: run a bundle on images with ONNX Runtime. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prompt_tune.annotations import Annotated

TABLE_ROWS = 20  # classes in the table; the rest is one line
SCORE = click.FloatRange(0, 1)
NAMES = "NAME, or LABEL:NAME in one vocabulary, or LABEL:* for all of it. Can be given several times."


@click.command(name="detect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--source", required=True, help="An image, a folder of images, or a glob pattern in quotes.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for pictures and detections.json.")
@click.option(
    "--learned",
    multiple=True,
    type=click.Path(path_type=Path),
    help="One more vocabulary file for the same detector; its file name is its label. Can be given several times.",
)
@click.option("--bundled/--no-bundled", default=True, show_default=True, help="Load the bundle's learned vocabulary.")
@click.option("--show", multiple=True, metavar="NAME", help=f"Show this class only: {NAMES}")
@click.option("--hide", multiple=True, metavar="NAME", help=f"Do not show this class: {NAMES}")
@click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where to compute."
)
@click.option("--iou", default=0.7, show_default=True, type=SCORE, help="Overlap above which the weaker box goes.")
@click.option("--conf", type=SCORE, help="Score above which a detection counts; default: each class's own threshold.")
@click.option("--original-conf", type=SCORE, help="The same for the original vocabulary; goes before --conf.")
@click.option("--learned-conf", type=SCORE, help="The same for all other vocabularies; goes before --conf.")
@click.option("--image-size", type=int, help="Side of the network's input in pixels; default: the bundle's.")
@click.option("--threads", default=0, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
def command(
    bundle: Path,
    source: str,
    out: Path,
    learned: tuple[Path, ...],
    bundled: bool,
    show: tuple[str, ...],
    hide: tuple[str, ...],
    device: str,
    iou: float,
    conf: float | None,
    original_conf: float | None,
    learned_conf: float | None,
    image_size: int | None,
    threads: int,
) -> None:
    """Detect the classes of BUNDLE, a folder of `prompt-tune export`, in images.

    Writes to --out a picture for each image, original classes in thin muted boxes, learned ones in thick bright ones,
    and detections.json in COCO's format, where each annotation says which vocabulary it is from.
    """
    from prompt_tune.annotations import annotate
    from prompt_tune.cli.progress import stages
    from prompt_tune.detections import choose_classes
    from prompt_tune.errors import VocabularyError
    from prompt_tune.images import find_images
    from prompt_tune.runtime import Detector

    paths = find_images(source)
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
    with stages() as report:
        result = annotate(
            detector,
            paths,
            out,
            iou=iou,
            original_conf=conf if original_conf is None else original_conf,
            learned_conf=conf if learned_conf is None else learned_conf,
            show=show or None,
            hide=hide,
            report=report,
        )
    _print(result)


def _print(result: "Annotated") -> None:
    """A line for each skipped image, a small table, and a summary in one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prompt_tune.detections import ORIGINAL

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
        Console().print(table)
        if len(ranked) > TABLE_ROWS:
            click.echo(f"... and {len(ranked) - TABLE_ROWS} classes more.")
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    total = sum(result.detections.values())
    click.echo(f"{total} detections in {result.images} image{'s' * (result.images != 1)}{skipped}: {result.out}")
