"""`prompt-tune export`: from a run folder to a bundle, or to a model repository of Triton."""

from pathlib import Path

import click

from prompt_tune.cli.options import Command
from prompt_tune.cli.terminal import note


@click.command(name="export", cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder to write. An old export is replaced."
)
@click.option(
    "--target",
    type=click.Choice(["bundle", "triton"]),
    default="bundle",
    show_default=True,
    help="What to write: a bundle, or a model repository for NVIDIA's Triton Inference Server.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 256),
    help="Triton: run up to this many requests in one call of the graph, which always gets as many images. Tensors "
    "then have one more dimension, of size 1, in front. By default 1, without that dimension.",
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
@click.option(
    "--slots",
    type=click.IntRange(1),
    metavar="N",
    help="Make a graph of fixed shapes, for runtimes that need them: one image, and N classes in each input of "
    "vocabularies.",
)
@click.option(
    "--no-nms",
    is_flag=True,
    help="Leave suppression out of the graph, for those who suppress elsewhere: it gives boxes and scores.",
)
def command(
    run: Path,
    out: Path,
    target: str,
    batch: int | None,
    half: bool,
    with_wheel: bool,
    no_photo: bool,
    name: str | None,
    slots: int | None,
    no_nms: bool,
) -> None:
    """Write a bundle, or a model repository of Triton, from RUN, a folder of `prompt-tune fit`.

    The bundle holds detector.onnx, original.vocab.safetensors, learned.vocab.safetensors, a README with the command
    that runs them, and the deployment kit: python/detect.py, and a page for browsers in web/, with one of the run's
    validation photos as its sample. The graph is compared
    with PyTorch on image sizes and numbers of classes for which it was not traced.
    """
    if half and (slots or no_nms):
        raise click.UsageError("--slots and --no-nms make graphs in float32. Leave out --half.")
    if target == "triton":
        if slots or no_nms:
            raise click.UsageError("--slots and --no-nms are for bundles: the model of a repository needs neither.")
        if with_wheel or no_photo or name is not None:
            raise click.UsageError(
                "--with-wheel, --no-photo and --name are for bundles. In a repository, the name of a vocabulary's file "
                "is its label: rename the file."
            )
        from prompt_tune.deployment.triton import export_triton

        export_triton(run, out, half=half, batch=batch or 1)
        note(f"Model repository: {out}")
        return
    if batch is not None:
        raise click.UsageError("--batch is for --target triton.")
    from prompt_tune.deployment.bundle import export_bundle

    export_bundle(
        run, out, half=half, photo=not no_photo, with_wheel=with_wheel, name=name, slots=slots, suppression=not no_nms
    )
    note(f"Bundle: {out}")
