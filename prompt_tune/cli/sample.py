"""`prompt-tune sample`: write the sample data set."""

from pathlib import Path

import click

from prompt_tune.cli.options import Command
from prompt_tune.cli.terminal import echo


@click.command(cls=Command)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
@click.option(
    "--images", "n_images", default=100, show_default=True, type=click.IntRange(1), help="Images in each split."
)
@click.option("--seed", default=0, show_default=True, help="Seed of everything that is drawn.")
def command(out: Path, n_images: int, seed: int) -> None:
    """Write the sample set: a data set of six new classes, and labelled scenes of tiny's original classes."""
    from prompt_tune.cli.progress import stages
    from prompt_tune.datasets.sample import write_sample

    with stages() as progress:
        custom, original = write_sample(out, n_images=n_images, seed=seed, progress=progress)
    echo(str(custom), str(original))
