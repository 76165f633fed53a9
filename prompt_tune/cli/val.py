"""`prompt-tune val`: COCO metrics of a run or a bundle on a data set."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_tune.cli.options import DEVICE_HELP
from prompt_tune.errors import PromptTuneError

if TYPE_CHECKING:
    from prompt_tune.evaluation.validate import Validation

TABLE_ROWS = 100  # classes in a table; --json has all
LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_1": "AR 1",
    "ar_10": "AR 10",
    "ar_100": "AR 100",
}


@click.command(name="val")
@click.argument("place", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    help="The data set, in any format of `fit`. Its classes are matched by name to learned and to original ones.",
)
@click.option(
    "--split",
    default="val",
    show_default=True,
    type=click.Choice(["train", "val", "test"]),
    help="Images of the data set to measure on; it needs no others.",
)
@click.option(
    "--engine",
    default=None,
    type=click.Choice(["torch", "onnx"]),
    help="What computes. Default: torch for a run, ONNX Runtime for a bundle; 'onnx' exports a run for the occasion.",
)
@click.option("--names", default=None, help="Names for the data set's classes, in its order, or a file of them.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help=f"Where it computes. ONNX Runtime: {DEVICE_HELP} torch: any of its devices.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, complete, instead of tables.")
@click.option(
    "--curves",
    default=None,
    type=click.Path(path_type=Path),
    help="Write precision-recall curves at IoU 0.5 to this .png file.",
)
def command(
    place: Path,
    data: str,
    split: str,
    engine: str | None,
    names: str | None,
    device: str,
    as_json: bool,
    curves: Path | None,
) -> None:
    """Measure RUN, a folder of `fit`, or BUNDLE, one of `export`, on a data set.

    COCO's average precision and recall, in 0..1, of learned and original classes apart and together, and of each class;
    for each class also precision and recall at IoU 0.5 above its threshold, which is what `detect` shows.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.vocabulary.names import read_classes

    try:
        import faster_coco_eval  # noqa: F401  # found missing now, not after all images

        from prompt_tune.evaluation.validate import validate
        from prompt_tune.report.figures import draw_precision_recall
    except ImportError as error:
        raise PromptTuneError(
            f"`val` needs packages that come with `fit`, and `{error.name}` is missing. Install them "
            "(pip install 'prompt-tune[fit]')."
        ) from error
    with stages() as progress:
        result = validate(
            place,
            data,
            split=split,  # type: ignore[arg-type]  # click.Choice has checked both
            engine=engine,  # type: ignore[arg-type]
            names=None if names is None else [prompts[0] for prompts in read_classes(names)],
            device=device,
            progress=progress,
        )
    for reason in result.skipped:
        click.echo(f"Skipped: {reason}", err=True)
    if curves is not None:
        titles = [_title(row.vocabulary, row.name, result) for row in result.classes]
        draw_precision_recall(curves, result.curves, titles)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        _print(result)


def _print(result: "Validation") -> None:
    """Two tables, and a line for what they leave out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    where = {"torch": "torch", "onnx": "ONNX Runtime"}[result.engine]
    click.echo(f"{result.images} images of `{result.split}`, measured through {where}.")
    means = [
        (f"{name} ({sum(row.vocabulary == name for row in result.classes)})", asdict(metrics))
        for name, metrics in (("learned", result.learned), ("original", result.original))
        if metrics is not None
    ]
    if len(means) > 1:
        means.append((f"together ({len(result.classes)})", asdict(result.together)))
    table = Table("classes")
    for name, _ in means:
        table.add_column(name, justify="right")
    for key, label in LABELS.items():
        table.add_row(label, *(_number(metrics[key]) for _, metrics in means))
    console.print(table)
    table = Table("class")
    for label in ("labels", "AP", "AP50", "AP75", "threshold", "precision", "recall"):
        table.add_column(label, justify="right")
    for row in result.classes[:TABLE_ROWS]:
        numbers = (row.metrics.ap, row.metrics.ap50, row.metrics.ap75, row.threshold, row.precision, row.recall)
        table.add_row(Text(_title(row.vocabulary, row.name, result)), str(row.objects), *map(_number, numbers))
    console.print(table)
    if len(result.classes) > TABLE_ROWS:
        click.echo(f"... and {len(result.classes) - TABLE_ROWS} classes more; --json has all.")
    for what, names in (
        ("In no vocabulary, so left out", result.unknown),
        (f"Without a label in `{result.split}`, so left out", result.unlabelled),
    ):
        if names:
            click.echo(f"{what}: {', '.join(names)}.")


def _title(vocabulary: str, name: str, result: "Validation") -> str:
    """The class's name, with its vocabulary where both are measured."""
    return name if result.learned is None or result.original is None else f"{vocabulary}: {name}"


def _number(value: float) -> str:
    """Three decimals; a dash where there is nothing to measure."""
    return "-" if value != value else f"{value:.3f}"
