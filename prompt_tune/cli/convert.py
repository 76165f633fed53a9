"""`prompt-tune convert`: turns what `label` wrote into COCO JSON or a YOLO data set."""

from pathlib import Path

import click

from prompt_tune.cli.options import Command
from prompt_tune.cli.terminal import echo
from prompt_tune.wording import counted


@click.command(name="convert", cls=Command)
@click.argument("labelled", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--to",
    required=True,
    multiple=True,
    type=click.Choice(["coco", "yolo"]),
    help="coco: detections.json. yolo: a data set to learn from, with copies of the images. Can be given twice.",
)
@click.option(
    "--show",
    "--classes",
    "show",
    multiple=True,
    metavar="NAME",
    help="Class that gets labels in the YOLO data set: NAME, LABEL:NAME for one vocabulary, or LABEL:* for all of its "
    "classes; default: the learned ones. Can be given several times.",
)
def command(labelled: Path, out: Path, to: tuple[str, ...], show: tuple[str, ...]) -> None:
    """Turn LABELLED, a folder from `prompt-tune label`, into the files that `detect --save` writes."""
    from prompt_tune.cli.progress import stages
    from prompt_tune.services.conversion import convert

    with stages() as progress:
        result = convert(labelled, out, to=to, show=show or None, progress=progress)  # type: ignore[arg-type]
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    echo(f"{counted(result.detections, 'detection')} in {counted(result.images, 'image')}{skipped}: {out}")
