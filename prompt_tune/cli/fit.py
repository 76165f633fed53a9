"""`prompt-tune fit`: learn context vectors for the classes of a data set."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from prompt_tune.cli.config_file import config_options
from prompt_tune.cli.config_file import save_config as write_config
from prompt_tune.cli.options import PLACE, Command, model_option, text_tower_option
from prompt_tune.cli.terminal import echo, note
from prompt_tune.config import FitConfig

_FIELDS = {part.name: part for part in fields(FitConfig)}
_SWITCHES = {  # settings that are on or off, and the option that says so
    "class_specific": "--class-specific/--shared-context",
    "freeze_old": "--freeze-old/--free-old",
    "calibrate": "--calibrate",
}
_ALIASES = {"image_size": ("--imgsz",), "nms_iou": ("--iou",)}  # what users of ultralytics type
_APART = "freeze_old"  # stands beside --from


def _setting(name: str) -> Callable[[Any], Any]:
    """The option of one field of the settings: its default, choices and help are those of the field."""
    part = _FIELDS[name]
    more: dict[str, Any] = {"default": part.default, "help": part.metadata["help"], "show_default": True}
    if name in _SWITCHES:
        return click.option(_SWITCHES[name], is_flag=True, **more | {"show_default": "/" in _SWITCHES[name]})
    if part.metadata["choices"]:
        more["type"] = click.Choice(part.metadata["choices"])
    elif isinstance(part.default, tuple):
        more |= {"type": type(part.default[0]), "nargs": len(part.default)}
    return click.option("--" + name.replace("_", "-"), *_ALIASES.get(name, ()), **more)


def _settings(function: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each setting, in the order of the fields."""
    for name in reversed(_FIELDS):
        if name != _APART:
            function = _setting(name)(function)
    return function


@click.command(cls=Command)
@model_option
@click.option(
    "--data",
    type=PLACE,
    required=True,
    help="The data set: ultralytics YAML, COCO JSON (YAML or Roboflow folder), or Pascal VOC folder.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder to write.")
@click.option(
    "--original",
    type=PLACE,
    default=None,
    help="The original vocabulary, which guides the neck: a file, a built-in list or names. Default: the model's own.",
)
@text_tower_option
@click.option(
    "--names",
    "--classes",
    default=None,
    help="Names for the data set's classes, in its order ('lorry; truck, car'), or a file of them.",
)
@click.option(
    "--replay",
    type=PLACE,
    multiple=True,
    metavar="DATA[=RATIO]",
    help="Images without the new objects, which teach the classes what they are not: a data set, a folder of images, "
    "or a grounding set (MDETR's JSON). RATIO images for each labelled one; default 3. Can be given several times.",
)
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="VOCABULARY",
    help="A vocabulary file that will be loaded beside the learned one: its classes become negatives, so that neither "
    "fires on the other's objects. Can be given several times; --stand-ins is their weight, 10 if it is 0.",
)
@click.option(
    "--from",
    "from_run",
    type=click.Path(path_type=Path),
    default=None,
    help="Continue from an earlier run, with more images or more classes. Its context is the start, its prompts are "
    "built in the same way, and its classes that are not in the data set stay as they are.",
)
@_setting(_APART)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse a data set of which anything would be left out: unreadable images, bad label rows, boxes without an "
    "area or that stand twice. Otherwise they are counted, and left_out.txt in --out lists them.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the region cache. Default: 'regions' in the run folder.",
)
@click.option(
    "--log",
    multiple=True,
    type=click.Choice(["tensorboard", "mlflow", "wandb"]),
    help="Also log each epoch, pictures and the vocabulary there, in the run folder. Can be given several times.",
)
@_settings
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Torch device: cpu, cuda, cuda:1, or 1 for the same. cuda:0,1 fills the cache on both GPUs, cpu,cpu in two "
    "processes. Under torchrun, cuda gives each rank its own GPU.",
)
@config_options
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str,
    data: str,
    out: Path,
    original: str | None,
    text_tower: str | None,
    names: str | None,
    replay: tuple[str, ...],
    against: tuple[Path, ...],
    from_run: Path | None,
    strict: bool,
    resume: bool,
    cache: Path | None,
    log: tuple[str, ...],
    device: str,
    save_config: Path | None,
    **settings: Any,
) -> None:
    """Learn context vectors for the classes of a data set. Detector and text tower stay as they are.

    Writes prompts.safetensors, learned.vocab.safetensors, metrics.jsonl, curves.png and report.html to the run folder.
    The documentation has the measurements behind the defaults. Ctrl-C keeps the best epoch so far, and --resume
    continues.
    """
    from prompt_tune.cli.progress import stages
    from prompt_tune.datasets.replay import parse_replay
    from prompt_tune.evaluation.baselines import before_and_after
    from prompt_tune.services.tracking import tracking
    from prompt_tune.tuning.fit import fit
    from prompt_tune.tuning.job import FitInputs
    from prompt_tune.tuning.ranks import device_of_rank, of_torchrun
    from prompt_tune.tuning.sharing import help_out
    from prompt_tune.vocabulary.names import read_classes

    ranks = of_torchrun()
    helps = ranks is not None and ranks.rank > 0
    if save_config is not None and not helps:
        write_config(context, save_config)
    inputs = FitInputs(
        model=model,
        data=data,
        original=original,
        text_tower=text_tower,
        classes=None if names is None else tuple(read_classes(names)),
        replay=tuple(parse_replay(text) for text in replay),
        from_run=from_run,
        against=against,
        cache=cache,
        given=frozenset(name for name in settings if context.get_parameter_source(name) is not ParameterSource.DEFAULT),
    )
    config = FitConfig(**settings)
    device = device if ranks is None else device_of_rank(device)
    if ranks is not None and helps:
        help_out(inputs, out, ranks, config=config, strict=strict, device=device)
        return
    with tracking(log, out) as tracked, stages() as progress:
        result = fit(
            inputs,
            out,
            config=config,
            resume=resume,
            strict=strict,
            device=device,
            ranks=ranks,
            progress=progress,
            on_epoch=tracked.epoch,
        )
        tracked.finish(result)
    measured = f"in a {result.folds}-fold cross-validation" if result.folds else "on the validation images"
    if result.folds == 1:
        measured = "on the images that were trained on"
    if result.tiling is not None:
        measured += ", in slices"
    say = note if result.finished else echo
    say(
        f"{'Done' if result.finished else 'Stopped'}: epoch {result.epoch} is kept, AP50 {result.ap50:.3f}, AP "
        f"{result.ap:.3f} {measured}. Cached in {result.seconds['cache']:.1f} s, trained in "
        f"{result.seconds['train']:.1f} s."
    )
    note(f"AP50 before and after: {before_and_after(result.unlearned, result.ap50)}.")
    for place in tracked.places():
        note(f"Logged: {place}")
    if result.tiling is not None:
        slices = result.tiling.slices
        note(f"Cut: {result.tiling}. Detect with --slice {slices.size} --slice-overlap {slices.overlap:g} too.")
    note(f"Next: prompt-tune export {result.run} --out BUNDLE")
