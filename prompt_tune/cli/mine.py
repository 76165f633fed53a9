"""`prompt-tune mine`: which unlabelled images to label next."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import Command, device_option, json_option, learned_option, source_options
from prompt_tune.cli.terminal import cell, echo, note
from prompt_tune.cli.verbosity import is_quiet
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.evaluation.mining import Candidate, Mined


@click.command(name="mine", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@source_options(
    "--source",
    "sources",
    "Unlabelled images: an image, a folder, or a glob pattern.",
    missing="the images to look at",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new or empty folder.")
@click.option("--top", default=20, show_default=True, help="How many images to write.")
@learned_option()
@click.option(
    "--data",
    "join",
    type=click.Path(path_type=Path),
    help="The ultralytics YAML that the classes were learned from: data.yaml in --out adds the images to it.",
)
@device_option
@json_option
def command(
    bundle: Path,
    sources: tuple[str, ...],
    out: Path,
    top: int,
    learned: tuple[Path, ...],
    join: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Find the unlabelled images that teach BUNDLE, a folder of `prompt-tune export`, most.

    Ranks the images in which learned classes are least sure, or fire where the original vocabulary is sure of something
    else. The best are written with pre-labels, as a YOLO data set and in COCO's format, and as pictures. Correct the
    labels, then go on with `fit --from`. Images without learned objects count too: delete their labels, and they teach
    the classes what they are not.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.evaluation.mining import mine
    from prompt_tune.runtime.detector import Detector

    detector = Detector(bundle, device=device, learned=learned)
    with stages() as progress:
        mined = mine(detector, sources, out, top=top, join=join, progress=progress)
    for line in mined.skipped:
        echo(f"Skipped: {line}", err=True)
    if as_json:
        click.echo(json.dumps(_as_json(mined), indent=1))
        return
    if is_quiet():
        return
    _print(mined.candidates)
    note(f"{counted(len(mined.candidates), 'image')} of {mined.images} to label: {out}")
    note(f"Next: correct the labels in {out / 'yolo'}, then prompt-tune fit --from RUN --data {mined.data} ...")


def _as_json(mined: "Mined") -> dict[str, object]:
    """What the table and the lines below it say; paths as text."""
    ranked = [{"image": str(row.path), "value": row.value, "reason": row.reason} for row in mined.candidates]
    return {"images": mined.images, "candidates": ranked, "skipped": list(mined.skipped), "data": str(mined.data)}


def _print(candidates: "tuple[Candidate, ...]") -> None:
    """Print the ranking as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "image", "value", "reason", box=None, pad_edge=False)
    for rank, candidate in enumerate(candidates, 1):
        table.add_row(str(rank), cell(candidate.path.name), f"{candidate.value:.2f}", cell(candidate.reason))
    Console().print(table)
