"""`prompt-tune export`: from a run folder to a bundle."""

from pathlib import Path

import click


@click.command(name="export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; an old bundle is replaced."
)
@click.option(
    "--half",
    is_flag=True,
    help="Convolutions and attention in float16, for GPUs, once boxes within 0.5 px and scores within 0.01 of float32 "
    "are measured on the sample set; boxes, scores and suppression stay in float32. A CPU gains nothing by it.",
)
def command(run: Path, out: Path, half: bool) -> None:
    """Write a bundle from RUN, a folder of `prompt-tune fit`.

    The bundle holds detector.onnx, original.vocab.safetensors, learned.vocab.safetensors, a README with the command
    that runs them, and the deployment kit: python/detect.py, and a page for browsers in web/. The graph is compared
    with PyTorch on shapes that its export never saw.
    """
    from prompt_tune.deployment.bundle import export_bundle

    export_bundle(run, out, half=half)
    click.echo(f"Bundle: {out}")
