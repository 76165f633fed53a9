"""`prompt-tune val`: COCO metrics of a run or a bundle on a data set."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_tune.cli.options import (
    DEVICE_HELP,
    PLACE,
    Command,
    json_option,
    learned_option,
    slice_options,
    strict_option,
)
from prompt_tune.cli.terminal import cell, echo, note
from prompt_tune.errors import RunError
from prompt_tune.run import CONFIG_FILE, RunFolder
from prompt_tune.runtime.detections import ORIGINAL
from prompt_tune.vocabulary.format import GRAPH_FILE
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.datasets.reading import SplitName
    from prompt_tune.evaluation.validate import Engine, Validation
    from prompt_tune.progress import Progress
    from prompt_tune.runtime.slices import Slices

TABLE_ROWS = 100  # classes listed in the table; --json lists all
WORST = 3  # pairs of classes named that are taken for one another
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


@click.command(name="val", cls=Command)
@click.argument("place", metavar="RUN|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=PLACE,
    required=True,
    help="The data set, in any format that `fit` reads. Its classes are matched by name to learned and original ones.",
)
@click.option(
    "--split",
    default="val",
    show_default=True,
    type=click.Choice(["train", "val", "test"]),
    help="The split of the data set to measure on. The data set needs no other.",
)
@learned_option("Needs ONNX Runtime: a bundle, or a run with --engine onnx.")
@click.option(
    "--engine",
    default=None,
    type=click.Choice(["torch", "onnx"]),
    help="What computes. Default: torch for a run, ONNX Runtime for a bundle. 'onnx' also measures a run, by exporting "
    "it to a temporary bundle.",
)
@click.option(
    "--names",
    "--classes",
    default=None,
    help="Class names to use instead of the data set's own, in its order, or a file of them.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help=f"Where it runs. With ONNX Runtime: {DEVICE_HELP} With torch: any of its devices.",
)
@slice_options
@strict_option
@json_option
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path),
    help="Also write to this folder: confusion.png, precision_recall.png, f1.png, images.csv (hits, misses and false "
    "alarms of each image) and val.json, which is what --json prints.",
)
@click.option(
    "--curves",
    default=None,
    type=click.Path(path_type=Path),
    help="Also write precision-recall curves at IoU 0.5 to this .png file.",
)
def command(
    place: Path,
    data: str,
    split: str,
    learned: tuple[Path, ...],
    engine: str | None,
    names: str | None,
    device: str,
    slices: "Slices | None",
    strict: bool,
    as_json: bool,
    out: Path | None,
    curves: Path | None,
) -> None:
    """Measure RUN, a folder of `fit`, or BUNDLE, a folder of `export`, on a data set.

    Prints COCO's average precision and recall, in 0..1, of learned classes, of original classes, of both together and
    of each class. For each class it also prints precision and recall at IoU 0.5 above the class's threshold, which is
    what `detect` shows.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.report.figures import draw_precision_recall, import_matplotlib
    from prompt_tune.report.validation import FILES, title, write_validation
    from prompt_tune.vocabulary.names import read_classes

    if curves is not None or out is not None:
        import_matplotlib()  # if it is missing, say so before the images are measured

    with stages() as progress:
        result = validate(
            place,
            data,
            learned=learned,
            split=split,  # type: ignore[arg-type]  # click.Choice has checked both
            engine=engine,  # type: ignore[arg-type]
            names=None if names is None else [prompts[0] for prompts in read_classes(names)],
            device=device,
            slices=slices,
            strict=strict,
            progress=progress,
        )
    for reason in result.skipped:
        echo(f"Skipped: {reason}", err=True)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        _print(result)
    # last: if a file cannot be written, the numbers are not lost
    if curves is not None:
        draw_precision_recall(curves, result.curves, [title(row, result) for row in result.classes])
    if out is not None:
        write_validation(out, result)
        if not as_json:
            note(f"Written to {out}: {', '.join(FILES)}.")


def validate(
    place: str | Path,
    data: str | Path,
    *,
    learned: Sequence[str | Path] = (),
    split: "SplitName" = "val",
    engine: "Engine | None" = None,
    names: Sequence[str] | None = None,
    device: str = "cpu",
    slices: "Slices | None" = None,
    strict: bool = False,
    progress: "Progress | None" = None,
) -> "Validation":
    """Measure a run folder of `fit` or a bundle of `export`, whichever `place` is.

    Args:
        place: The folder.
        data: A data set; see `validate_run`.
        learned: More vocabulary files for the same detector. They need ONNX Runtime.
        split: The split to measure on.
        engine: None takes torch for a run and ONNX Runtime for a bundle. "onnx" also measures a run, by exporting it to
            a temporary bundle.
        names: Class names to use instead of the data set's own, in class-id order.
        device: A device of torch or of ONNX Runtime.
        slices: How images are also looked at in slices. By default, only as a whole.
        strict: Whether anything of the data that is left out (unreadable images, bad label rows, ...) is an error.
        progress: Called after each image.

    Raises:
        RunError: The folder is neither a run nor a bundle, the engine is torch and it is a bundle, or the engine is
            torch and there are more vocabulary files.
        PromptTuneError: See `validate_run` and `validate_bundle`.
    """
    from prompt_tune.evaluation.validate import validate_bundle, validate_run

    place = Path(place)
    options: dict[str, Any] = {"split": split, "names": names, "device": device, "slices": slices}
    options |= {"strict": strict, "progress": progress}
    if (place / GRAPH_FILE).is_file():
        if engine == "torch":
            raise RunError(f"`{place}` is a bundle, which only ONNX Runtime can run. For torch, give the run itself.")
        return validate_bundle(place, data, learned=learned, **options)
    if not (place / CONFIG_FILE).is_file():
        raise RunError(
            f"`{place}` is neither a run of `fit` (no {CONFIG_FILE}) nor a bundle (no {GRAPH_FILE}). Give one of them."
        )
    if engine != "onnx":
        if learned:
            raise RunError(
                f"`{place}` is a run, which torch measures without further vocabularies (--learned). Add --engine "
                "onnx, or give its bundle."
            )
        return validate_run(place, data, **options)
    from prompt_tune.deployment.bundle import export_bundle

    with tempfile.TemporaryDirectory() as folder:
        export_bundle(place, Path(folder) / "bundle", photo=False)
        recorded = RunFolder(place).held_out()
        return validate_bundle(Path(folder) / "bundle", data, learned=learned, recorded=recorded, **options)


def _print(result: "Validation") -> None:
    """Print two tables, and name the classes that they leave out."""
    from rich.console import Console
    from rich.table import Table

    from prompt_tune.report.validation import title

    console = Console(highlight=False)
    where = {"torch": "torch", "onnx": "ONNX Runtime"}[result.engine]
    in_slices = f", in slices of {result.slices.size} px too" if result.slices else ""
    echo(f"{counted(result.images, 'image')} of `{result.split}`, measured through {where}{in_slices}.")
    means = [
        (
            f"{name} ({sum((row.vocabulary == ORIGINAL) == (name == ORIGINAL) for row in result.classes)})",
            asdict(metrics),
        )
        for name, metrics in (("learned", result.learned), ("original", result.original))
        if metrics is not None
    ]
    if len(means) > 1:
        means.append((f"together ({len(result.classes)})", asdict(result.together)))
    means += [(part.label, asdict(part.metrics)) for part in result.unlearned]
    table = Table("classes")
    for name, _ in means:
        table.add_column(name, justify="right")
    for key, label in LABELS.items():
        table.add_row(label, *(_number(metrics[key]) for _, metrics in means))
    console.print(table)
    for part in result.unlearned:
        if part.chosen:
            echo(f"Best template: '{part.template}', {part.chosen}.")
    if result.note:
        echo(result.note)
    table = Table("class")
    for label in ("labels", "AP", "AP50", "AP75", "threshold", "precision", "recall"):
        table.add_column(label, justify="right")
    for row in result.classes[:TABLE_ROWS]:
        numbers = (row.metrics.ap, row.metrics.ap50, row.metrics.ap75, row.threshold, row.precision, row.recall)
        table.add_row(cell(title(row, result)), str(row.objects), *map(_number, numbers))
    console.print(table)
    if len(result.classes) > TABLE_ROWS:
        echo(f"... and {counted(len(result.classes) - TABLE_ROWS, 'more class')}; --json lists all.")
    if worst := result.confusion.worst()[:WORST]:
        pairs = [
            f"{count} {column.name} ({column.vocabulary}) on {row.name} ({counted(row.objects, 'object')})"
            for row, column, count in worst
        ]
        echo(f"Detections on objects of other classes, most often: {'; '.join(pairs)}.")
    for what, names in (
        ("Left out, because no vocabulary has them", result.unknown),
        (f"Left out, because `{result.split}` has no label of them", result.unlabelled),
    ):
        if names:
            echo(f"{what}: {', '.join(names)}.")


def _number(value: float) -> str:
    """A number with three decimals; a dash for nan."""
    return "-" if value != value else f"{value:.3f}"
