"""`prompt-tune export`: from a run folder to a bundle."""

from pathlib import Path

import click

from prompt_tune.cli.options import Command
from prompt_tune.cli.terminal import note


@click.command(name="export", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The bundle's folder. An old bundle is replaced."
)
@click.option(
    "--half",
    is_flag=True,
    help="Run convolutions and attention in float16, for GPUs. Boxes, scores and suppression stay in float32. The "
    "export fails if boxes differ from float32 by more than 0.5 px, or scores by more than 0.01, on the sample set. A "
    "CPU gains nothing from it.",
)
@click.option(
    "--with-wheel",
    is_flag=True,
    help="Put a wheel of prompt-tune, built from its checkout, beside the bundle's files, for people who have no "
    "checkout.",
)
@click.option(
    "--no-photo",
    is_flag=True,
    help="Leave out the validation photo of the run that the page's Sample button shows, if you may not hand it on.",
)
@click.option(
    "--name",
    metavar="LABEL",
    help="The label of the learned vocabulary, which every detection of its classes names; default: learned.",
)
def command(run: Path, out: Path, half: bool, with_wheel: bool, no_photo: bool, name: str | None) -> None:
    """Write a bundle from RUN, a folder of `prompt-tune fit`.

    The bundle holds detector.onnx, original.vocab.safetensors, learned.vocab.safetensors, a README with the command
    that runs them, and the deployment kit: python/detect.py, and a page for browsers in web/, with one of the run's
    validation photos as its sample. The graph is compared
    with PyTorch on image sizes and numbers of classes for which it was not traced.
    """
    from prompt_tune.deployment.bundle import export_bundle

    export_bundle(run, out, half=half, photo=not no_photo, with_wheel=with_wheel, name=name)
    note(f"Bundle: {out}")
