"""`prompt-tune export`: from a run folder to a bundle."""

from pathlib import Path

import click


@click.command(name="export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of the bundle; an old bundle is replaced."
)
def command(run: Path, out: Path) -> None:
    """Write a bundle from RUN, a folder of `prompt-tune fit`.

    The bundle holds detector.onnx, original.vocab.safetensors, learned.vocab.safetensors and a README with the command
    that runs them. The graph is compared with PyTorch on shapes that its export never saw.
    """
    from prompt_tune.bundle import export_bundle

    export_bundle(run, out)
    click.echo(f"Bundle: {out}")
