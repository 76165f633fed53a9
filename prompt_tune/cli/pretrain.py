"""`prompt-tune pretrain`: train `tiny` from scratch."""

import json
from pathlib import Path

import click

from prompt_tune.cli.options import Command, json_option, torch_device_option


@click.command(cls=Command)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the model and the state to resume from."
)
@click.option("--seed", default=0, show_default=True, help="Seed of scenes, targets and initial weights.")
@torch_device_option
@json_option
def command(out: Path, seed: int, device: str, as_json: bool) -> None:
    """Train `tiny`, the small YOLO-World that ships with the package, from scratch on drawn scenes.

    Takes about an hour on two CPU cores. It can be stopped at any time: the same command resumes it.
    """
    from rich.console import Console
    from rich.table import Table

    from prompt_tune.tiny.pretrain import pretrain

    skill = pretrain(out, seed=seed, device=device)
    if as_json:
        click.echo(json.dumps(skill, indent=1))
        return
    table = Table("measure", "value", title="the model on scenes that its training never drew")
    for name, value in skill.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
