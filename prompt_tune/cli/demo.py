"""`prompt-tune demo`: the whole workflow on `tiny`."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from prompt_tune.cli.options import Command, json_option
from prompt_tune.cli.terminal import note


@click.command(cls=Command)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new or empty folder for all results.")
@click.option(
    "--images", "n_images", default=100, show_default=True, type=click.IntRange(4), help="Images in each split."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the sample set and of the fit.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device of the fit and of ONNX Runtime: cpu, cuda, or the number of a GPU.",
)
@json_option
def command(out: Path, n_images: int, seed: int, device: str, as_json: bool) -> None:
    """Teach tiny six new classes, export them, and detect with ONNX Runtime, with and without them.

    Prints a table, and writes summary.json and demo.png to --out. Takes a few minutes on two CPU cores.
    """
    from rich.console import Console
    from rich.table import Table

    from prompt_tune.cli.progress import stages
    from prompt_tune.tiny.demo import demo

    with stages() as progress:
        summary = demo(out, n_images=n_images, seed=seed, device=device, progress=progress)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=1))
        return
    table = Table("", "before", "after", title="tiny, six new classes, ONNX Runtime")
    table.add_row("new classes, AP50 (test images)", f"{summary.zero_shot_ap50:.3f}", f"{summary.learned_ap50:.3f}")
    table.add_row(
        "original 80 classes, AP50", f"{summary.original_ap50_before:.3f}", f"{summary.original_ap50_after:.3f}"
    )
    table.add_row("bits of original detections changed", "", f"{summary.original_bits_changed}")
    table.add_row("seconds", "", f"{summary.seconds:.1f}")
    Console().print(table)
    note("New classes: with plain names, then with learned prompts. Original classes: without, then with them.")
    note(f"See {out / 'demo.png'}; try `prompt-tune detect {out / 'bundle'} --source IMAGE --out FOLDER`.")
