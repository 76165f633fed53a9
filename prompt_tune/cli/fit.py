"""`prompt-tune fit`: learn context vectors for the classes of a data set."""

from pathlib import Path
from typing import get_args

import click

from prompt_tune.config import HELP, FitConfig, TokenPosition
from prompt_tune.contract import GuideMode

_DEFAULT = FitConfig()


@click.command()
@click.option(
    "--model",
    required=True,
    help="'tiny', a YOLO-World checkpoint (.pt), or an official name such as yolov8s-worldv2.pt.",
)
@click.option(
    "--data",
    required=True,
    help="The data set: ultralytics YAML, COCO JSON (YAML or Roboflow folder), or Pascal VOC folder.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder to write.")
@click.option(
    "--original",
    default=None,
    help="Original vocabulary, which guides the neck: a file, a built-in list or names; default: the model's own.",
)
@click.option(
    "--text-tower", default=None, help="'local-dir:FOLDER' or open_clip's NAME:TAG; default: the model's own."
)
@click.option(
    "--names",
    default=None,
    help="Names for the data set's classes, in its order ('lorry; truck, car'), or a file of them.",
)
@click.option(
    "--replay",
    multiple=True,
    metavar="DATA[=RATIO]",
    help="Images that have none of the new objects, to learn what the classes are not: a data set, a folder of images, "
    "or a grounding set (JSON as of MDETR). RATIO images for each labelled one; default 3. Can be given several times.",
)
@click.option(
    "--from",
    "from_run",
    type=click.Path(path_type=Path),
    default=None,
    help="Go on from an earlier run, with more images or more classes: its context is the start, prompts are built as "
    "there, and its classes that are not in the data set stay as they are.",
)
@click.option("--freeze-old/--free-old", default=_DEFAULT.freeze_old, show_default=True, help=HELP["freeze_old"])
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the region cache; default: 'regions' in the run.",
)
@click.option("--context-length", default=_DEFAULT.context_length, show_default=True, help=HELP["context_length"])
@click.option(
    "--class-specific/--shared-context", default=_DEFAULT.class_specific, show_default=True, help=HELP["class_specific"]
)
@click.option(
    "--token-position",
    type=click.Choice(get_args(TokenPosition)),
    default=_DEFAULT.token_position,
    show_default=True,
    help=HELP["token_position"],
)
@click.option(
    "--prompts-per-class", default=_DEFAULT.prompts_per_class, show_default=True, help=HELP["prompts_per_class"]
)
@click.option("--initial-words", default=_DEFAULT.initial_words, show_default=True, help=HELP["initial_words"])
@click.option("--teacher-weight", default=_DEFAULT.teacher_weight, show_default=True, help=HELP["teacher_weight"])
@click.option(
    "--guide", type=click.Choice(get_args(GuideMode)), default=_DEFAULT.guide, show_default=True, help=HELP["guide"]
)
@click.option("--epochs", default=_DEFAULT.epochs, show_default=True, help=HELP["epochs"])
@click.option("--updates", default=_DEFAULT.updates, show_default=True, help=HELP["updates"])
@click.option("--learning-rate", default=_DEFAULT.learning_rate, show_default=True, help=HELP["learning_rate"])
@click.option("--batch", default=_DEFAULT.batch, show_default=True, help=HELP["batch"])
@click.option("--image-size", default=_DEFAULT.image_size, show_default=True, help=HELP["image_size"])
@click.option("--views", default=_DEFAULT.views, show_default=True, help=HELP["views"])
@click.option(
    "--region-budget", type=int, nargs=3, default=_DEFAULT.region_budget, show_default=True, help=HELP["region_budget"]
)
@click.option("--precision", default=_DEFAULT.precision, show_default=True, help=HELP["precision"])
@click.option("--nms-iou", default=_DEFAULT.nms_iou, show_default=True, help=HELP["nms_iou"])
@click.option("--calibrate", is_flag=True, default=_DEFAULT.calibrate, help=HELP["calibrate"])
@click.option("--seed", default=_DEFAULT.seed, show_default=True, help=HELP["seed"])
@click.option("--device", default="cpu", show_default=True, help="Torch device: cpu, cuda, cuda:1.")
def command(
    model: str,
    data: str,
    out: Path,
    original: str | None,
    text_tower: str | None,
    names: str | None,
    replay: tuple[str, ...],
    from_run: Path | None,
    resume: bool,
    cache: Path | None,
    device: str,
    **settings: object,
) -> None:
    """Learn context vectors for the classes of a data set; detector and text tower stay as they are.

    Writes prompts.safetensors, learned.vocab.safetensors, metrics.jsonl, curves.png and report.html to the run folder.
    The defaults are what the tables in the README say. Ctrl-C keeps the best epoch so far, and --resume goes on.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.datasets.replay import parse_replay
    from prompt_tune.tuning.fit import fit
    from prompt_tune.vocabulary.names import read_classes

    with stages() as progress:
        result = fit(
            model,
            data,
            out,
            config=FitConfig(**settings),  # type: ignore[arg-type]
            original=original,
            text_tower=text_tower,
            classes=None if names is None else read_classes(names),
            replay=[parse_replay(text) for text in replay],
            from_run=from_run,
            cache=cache,
            resume=resume,
            device=device,
            progress=progress,
        )
    click.echo(
        f"{'Done' if result.finished else 'Stopped'}: epoch {result.epoch} is kept, AP50 {result.ap50:.3f}, AP "
        f"{result.ap:.3f} on the validation images. Cached in {result.seconds['cache']:.1f} s, trained in "
        f"{result.seconds['train']:.1f} s."
    )
    click.echo(f"Next: prompt-tune export {result.run} --out BUNDLE")
