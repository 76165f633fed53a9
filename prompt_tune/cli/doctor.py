"""`prompt-tune doctor`: what is installed here and what is missing, and the whole chain on a checkpoint."""

import json
import sys
from pathlib import Path

import click

from prompt_tune.cli.options import PLACE, Command, device_option, json_option, text_tower_option
from prompt_tune.cli.terminal import echo, note

FAILED = 3  # exit status of a check that found something


@click.command(cls=Command)
@click.option(
    "--model",
    type=PLACE,
    help="Also run the whole chain on this checkpoint: 'tiny', a .pt file, or an official name. Takes some minutes.",
)
@text_tower_option
@click.option(
    "--image-size",
    "--imgsz",
    type=click.IntRange(32),
    help="Side of the network's input in pixels; default: 256 for tiny, 640 for checkpoints. Needs --model.",
)
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the page to this file (.md) instead of printing it.",
)
@json_option
def command(
    model: str | None,
    text_tower: str | None,
    image_size: int | None,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what is installed on this machine, what is missing, and how to get it.

    With --model, check that prompt-tune works with that checkpoint: its text tower belongs to it, plain names score on
    a sample photo, the export agrees with torch, original detections keep every bit beside 1 and 100 learned rows, and
    a fit on ten pictures learns. The page is Markdown without paths and names of yours, so you can send it to others.

    The exit status is 3 if something that is installed does not fit together, or a step fails.
    """
    if model is None and (text_tower is not None or image_size is not None):
        raise click.UsageError("--text-tower and --image-size need --model: the checkpoint to check.")
    from prompt_tune.services.doctor_page import page
    from prompt_tune.services.environment import look_around

    environment, checkup = look_around(), None
    if model is not None:
        from prompt_tune.cli.progress import stages
        from prompt_tune.services.checkup import check_model

        with stages() as progress:
            checkup = check_model(model, text_tower=text_tower, image_size=image_size, device=device, progress=progress)
    if as_json:
        content = {"environment": environment.to_json(), "chain": None if checkup is None else checkup.to_json()}
        click.echo(json.dumps(content, indent=1))
    text = page(environment, checkup)
    if out is not None:
        from prompt_tune.errors import RunError
        from prompt_tune.files import saving

        with saving(out, RunError, cure="Give another --out.") as temporary:
            temporary.write_text(text, encoding="utf-8")
        note(f"Wrote {out}. It has no paths and names of yours.", err=as_json)
    elif not as_json:
        echo(*text.splitlines())
    if environment.broken or (checkup is not None and checkup.failed):
        sys.exit(FAILED)
