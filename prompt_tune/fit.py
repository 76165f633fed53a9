"""Learn context vectors for a data set's classes on a frozen YOLO-World: cache once, then train on the cache.

The whole method: the original vocabulary guides the neck, so head features and boxes cannot depend on the prompts;
what is left to train is `ctx` (CoOp, arXiv 2109.01134) through the frozen text tower and the folded head.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prompt_tune import __version__
from prompt_tune.build import default_tower, original_vocabulary
from prompt_tune.calibration import apply_calibration, draw_reliability, fit_calibration
from prompt_tune.config import IMAGE_SIZE, TINY_IMAGE_SIZE, FitConfig, RegionBudget
from prompt_tune.context import PromptContext
from prompt_tune.datasets import DataSet, Sample, Split, read_dataset
from prompt_tune.device import check_device
from prompt_tune.errors import DataError, RunError
from prompt_tune.evaluate import detect_cached
from prompt_tune.fit_report import write_fit_report
from prompt_tune.metrics import match_classes
from prompt_tune.prompts_file import save_context
from prompt_tune.regions import RegionCache, cache_regions
from prompt_tune.run import RunFolder
from prompt_tune.text import TextTower
from prompt_tune.thresholds import choose_thresholds
from prompt_tune.trainer import Trainer
from prompt_tune.vocabulary import Vocabulary
from prompt_tune.world import TINY, World

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]  # stage, done, total, note: what a progress bar shows


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    run: its folder. epoch: the one that was kept, from 1. ap, ap50: of the learned classes on the validation images, in
    0..1. finished: False when it was stopped before the last epoch. seconds: by stage, "cache" and "train".
    """

    run: Path
    epoch: int
    ap: float
    ap50: float
    finished: bool
    seconds: dict[str, float]


def fit(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    config: FitConfig | None = None,
    original: str | Path | None = None,
    text_tower: str | None = None,
    classes: Sequence[tuple[str, ...]] | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Report | None = None,
) -> FitResult:
    """Learn prompts for the classes of a data set.

    Args:    model: what `World.load` takes. data: what `read_dataset` takes. out: the run folder to write.
             config: the settings. original: what guides the neck; see `build.original_vocabulary`.
             text_tower: what `TextTower.load` takes; None is the model's own. classes: (name, synonym, ...) for each
             class of the data set, in its order; None takes the data set's names. cache: folder of the region cache,
             None is `out`/regions. resume: go on with what is in `out`. device: a torch device.
             report: called as the work goes on. KeyboardInterrupt, by it or by the user, ends the training; what was
             learned until then is kept.
    Returns: the best epoch, by AP on the validation images.
    Raises:  PromptTuneError: something of the above cannot be used; nothing is half-written.
    """
    config = config or FitConfig()
    report = report or (lambda stage, done, total, note: None)
    check_device(device)
    world = World.load(model, device=device)
    tower = TextTower.load(text_tower or default_tower(model), device=device)
    vocabulary = original_vocabulary(world, tower, original)
    names = None if classes is None else [prompts[0] for prompts in classes]
    dataset = read_dataset(data, seed=config.seed, names=names)
    if not config.image_size:
        config = replace(config, image_size=TINY_IMAGE_SIZE if str(model) == TINY else IMAGE_SIZE)
    context = PromptContext(
        tower,
        classes or [(name,) for name in dataset.names],
        n_ctx=config.context_length,
        class_specific=config.class_specific,
        initial_words=config.initial_words,
        seed=config.seed,
    )
    digests = {"detector": world.digest, "text_tower": tower.digest, "guide": vocabulary.digest}
    run = RunFolder(Path(out))
    run.open(
        {
            "version": 1,
            "model": _whole_path(model),
            "text_tower": tower.spec,
            "data": _whole_path(data),
            "labels": _label_digest(dataset),
            "classes": [list(prompts) for prompts in context.classes],
            "digests": digests,
            "prompt_tune": __version__,
            "image_size": config.image_size,
            "settings": config.as_json(),
        },
        resume=resume,
    )
    vocabulary.save(run.original)
    guide = torch.tensor(vocabulary.embeddings, device=world.device).flatten(0, 1)  # (n_cls * n_prompts, 512)
    seconds = {"cache": time.perf_counter()}
    folder = Path(cache) if cache else run.folder / "regions"
    train, val = _cache_splits(world, guide, dataset, folder, config, report)
    seconds["cache"] = time.perf_counter() - seconds["cache"]

    started = time.perf_counter()
    trainer = Trainer(world, context, train, val, config)
    _train(run, trainer, report, resume=resume)
    seconds["train"] = time.perf_counter() - started
    _write_result(run, trainer, vocabulary, dataset.val.samples, config)
    return FitResult(
        run.folder,
        trainer.best_epoch,
        trainer.best.ap,
        trainer.best.ap50,
        finished=trainer.epoch == config.epochs,
        seconds=seconds,
    )


def _train(run: RunFolder, trainer: Trainer, report: Report, *, resume: bool) -> None:
    """Epoch after epoch, each kept on disk, until all are done or the user stops it.

    Raises:  RunError: it was stopped before the first epoch was done.
    """
    state = run.load_state(trainer.context.ctx.shape) if resume else None
    if state is not None:
        trainer.restore(state)
    epochs = trainer.config.epochs
    try:
        while trainer.epoch < epochs:
            line = trainer.run_epoch()
            run.add_metrics(line)
            run.save_state(trainer.state())
            note = f"loss {line['loss']:.3f}  AP50 {line['ap50']:.3f}  AP {line['ap']:.3f}"
            report("train", trainer.epoch, epochs, note)
    except KeyboardInterrupt:
        logger.warning("Stopped after epoch %d of %d; --resume goes on.", trainer.epoch, epochs)
    if not trainer.best_epoch:
        raise RunError(f"Stopped before the first epoch of {run.folder} was done. Start it again: the cache is kept.")


def _whole_path(place: str | Path) -> str:
    """The absolute path of a file or folder, so that a run works from anywhere; a name such as `tiny` as it is."""
    return str(Path(place).resolve()) if str(place) != TINY and Path(place).exists() else str(place)


def _label_digest(dataset: DataSet) -> str:
    """SHA-256 (hex) of images and labels by name: a run is not resumed on a data set that was edited meanwhile."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.val):
        for sample in split.samples:
            digest.update(f"{sample.path.name} {len(sample.classes)}\n".encode())
            for part in (sample.boxes_xyxy, sample.classes, sample.ignore):
                digest.update(part.tobytes())
        digest.update(b"\n")
    return digest.hexdigest()


def _cache_splits(
    world: World, guide: Tensor, dataset: DataSet, folder: Path, config: FitConfig, report: Report
) -> tuple[RegionCache, RegionCache]:
    """Cached training images (budgeted, in their views) and validation images (all anchors)."""

    def run(split: Split, stage: str, views: int, budget: RegionBudget | None) -> RegionCache:
        for cache in cache_regions(
            world,
            guide,
            split.samples,
            folder,
            image_size=config.image_size,
            views=views,
            budget=budget,
            seed=config.seed,
        ):
            report(stage, len(cache.files) + len(cache.skipped), len(split.samples), "")
        if cache.skipped:
            logger.warning("%d damaged images skipped:\n  %s", len(cache.skipped), "\n  ".join(cache.skipped))
        return cache

    train = run(dataset.train, "cache train", config.views, RegionBudget(*config.region_budget))
    val = run(dataset.val, "cache val", 1, None)
    if not any(len(train.load(i).label_classes) for i in range(len(train.files))):
        raise DataError(f"No readable training image of `{dataset.source}` has a box. Replace the damaged images.")
    return train, val


def _write_result(
    run: RunFolder, trainer: Trainer, original: Vocabulary, val_samples: Sequence[Sample], config: FitConfig
) -> None:
    """Prompts and learned vocabulary of the best epoch, with thresholds and calibration; then the pages."""
    context = trainer.context
    with torch.no_grad():
        context.ctx.copy_(trainer.best_ctx)
    save_context(context, run.prompts)
    names, embeddings = tuple(prompts[0] for prompts in context.classes), context.embeddings()
    detections = detect_cached(trainer.world, embeddings, trainer.val, trainer.anchors)
    matched = match_classes(*detections, len(names))
    calibration = fit_calibration(names, matched) if config.calibrate else None
    final = matched if calibration is None else apply_calibration(matched, calibration)
    thresholds = choose_thresholds(names, final, precision=config.precision)
    Vocabulary(
        names=names,
        embeddings=embeddings,
        thresholds=thresholds.values,
        calibration=calibration,
        kind="learned",
        detector=trainer.world.digest,
        text_tower=context.tower.digest,
        guide=original.digest,
        provenance={
            "prompt_tune": __version__,
            "torch": torch.__version__.split("+")[0],
            "settings": config.as_json(),
            "epoch": trainer.best_epoch,
            "val_ap": round(trainer.best.ap, 6),
            "val_ap50": round(trainer.best.ap50, 6),
            "train_images": len(trainer.train.files),
            "val_images": len(trainer.val.files),
            "thresholds": thresholds.as_json(names),
        },
    ).save(run.learned)
    run.draw_curves()
    draw_reliability(run.reliability, matched, None if calibration is None else final)
    write_fit_report(run, trainer.world, context, trainer.val, val_samples, detections[1])
