"""`prompt-tune label`: detects in any number of images, on one machine or a cluster, and writes Parquet."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prompt_tune.cli.options import (
    Command,
    detector_options,
    recursive_option,
    slice_options,
    source_options,
    wanted_options,
)
from prompt_tune.cli.terminal import echo
from prompt_tune.contract import MOST_BATCH
from prompt_tune.wording import counted

if TYPE_CHECKING:
    from prompt_tune.runtime.slices import Slices


@click.command(name="label", cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@source_options(
    "--source",
    "sources",
    "An image, a tar of images (WebDataset), a Parquet file with a column `path`, `bytes` or `image`, a folder of "
    "these, a glob pattern, or an address such as s3://BUCKET/FOLDER.",
    missing="what to label",
)
@recursive_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for the results, which all workers share. If it has results of the same settings, the run goes on.",
)
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="local: this machine. ray: a Ray cluster.",
)
@click.option(
    "--address",
    default="auto",
    show_default=True,
    help="Of the Ray cluster: auto: the one that this machine belongs to; local: one on this machine, for this run; or "
    "HOST:PORT.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Detectors at work; default: 1, and on a Ray cluster as many as it has GPUs, or with --device cpu, cores.",
)
@detector_options
@wanted_options("Write", "write")
@slice_options
@click.option(
    "--batch",
    default=8,
    show_default=True,
    type=click.IntRange(1, MOST_BATCH),
    help="Images that go through the network at once; with --slice, slices of an image.",
)
@click.option(
    "--part",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="Images in a Parquet file: what a kill costs each worker at most.",
)
@click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="CPU threads of each worker; 0: its share of the cores, on a Ray cluster one.",
)
def command(
    bundle: Path,
    sources: tuple[str, ...],
    recursive: bool,
    out: Path,
    engine: str,
    address: str,
    workers: int | None,
    loading: dict[str, Any],
    wanted: dict[str, Any],
    slices: "Slices | None",
    batch: int,
    part: int,
    threads: int,
) -> None:
    """Detect the classes of BUNDLE, a folder from `prompt-tune export`, in any number of images.

    Writes one row for each image to Parquet files of one schema in --out, also for images that cannot be read, with the
    error. A run that was stopped, however it was, goes on where it is run again. `prompt-tune convert` makes COCO JSON
    or a YOLO data set of it.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.services.cluster import label

    with stages() as progress:
        result = label(
            bundle,
            sources,
            out,
            engine=engine,  # type: ignore[arg-type]  # click.Choice has checked it
            address=address,
            workers=workers,
            **loading,
            **wanted,
            slices=slices,
            batch=batch,
            part=part,
            threads=threads,
            recursive=recursive,
            progress=progress,
        )
    for error in result.errors:
        echo(f"Not read: {error}", err=True)
    if result.failed > len(result.errors):
        echo(f"... and {result.failed - len(result.errors)} more. The rows have all errors.", err=True)
    failed = f", {result.failed} that cannot be read" if result.failed else ""
    before = f", {result.before} labelled before" if result.before else ""
    echo(f"{counted(result.detections, 'detection')} in {counted(result.images, 'image')}{failed}{before}: {out}")
