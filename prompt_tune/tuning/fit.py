"""Learn context vectors for a data set's classes on a frozen YOLO-World: cache once, then train on the cache.

The whole method: the original vocabulary guides the neck, so head features and boxes cannot depend on the prompts;
what is left to train is `ctx` (CoOp, arXiv 2109.01134) through the frozen text tower and the folded head.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prompt_tune.config import FitConfig
from prompt_tune.contract import NMS_IOU
from prompt_tune.datasets.replay import ReplaySource
from prompt_tune.errors import RunError
from prompt_tune.evaluation.calibration import apply_calibration, fit_calibration
from prompt_tune.evaluation.matching import match_classes
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.evaluation.thresholds import choose_nms_iou, choose_thresholds
from prompt_tune.models.prompts_file import save_context
from prompt_tune.models.world import TINY, check_device
from prompt_tune.progress import Progress
from prompt_tune.report.figures import draw_reliability, draw_training
from prompt_tune.run import CACHE_FOLDER, RunFolder
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.job import Job, prepare
from prompt_tune.tuning.state import load_state, save_state
from prompt_tune.tuning.summary import write_fit_report
from prompt_tune.tuning.tasks import Caching
from prompt_tune.tuning.trainer import Trainer
from prompt_tune.version import __version__
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

logger = logging.getLogger(__name__)


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
    replay: Sequence[ReplaySource] = (),
    from_run: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> FitResult:
    """Learn prompts for the classes of a data set.

    Args:    model: what `World.load` takes. data: what `read_dataset` takes. out: the run folder to write.
             config: the settings. original: what guides the neck; see `build.original_vocabulary`.
             text_tower: what `TextTower.load` takes; None is the model's own. classes: (name, synonym, ...) for each
             class of the data set, in its order; None takes the data set's names. replay: images without the new
             objects, mixed in. from_run: an earlier run to go on from: its context is the start, its original
             vocabulary the guide, and its classes that are not in the data set are carried over. cache: folder of the
             region cache, None is `out`/regions. resume: go on with what is in `out`. device: a torch device.
             progress: called as the work goes on. KeyboardInterrupt, by it or by the user, ends the training; what was
             learned until then is kept.
    Returns: the best epoch, by AP on the validation images.
    Raises:  PromptTuneError: something of the above cannot be used; nothing is half-written.
    """
    progress = progress or (lambda stage, done, total, note: None)
    check_device(device)
    job = prepare(model, data, config or FitConfig(), original, text_tower, classes, replay, from_run, device)
    run = RunFolder(Path(out))
    run.open(
        job.as_json()
        | {
            "model": _whole_path(model),
            "data": _whole_path(data),
            "replay": [[_whole_path(source.place), source.ratio] for source in replay],
        },
        resume=resume,
    )
    job.original.save(run.original)
    started = time.perf_counter()
    caching = Caching(
        job.world, job.original, Path(cache) if cache else run.folder / CACHE_FOLDER, job.config, progress
    )
    task = caching.task(job.dataset, job.replayed)
    seconds = {"cache": time.perf_counter() - started}

    started = time.perf_counter()
    trainer = Trainer(task, job.context, job.config, teacher=job.teacher, frozen=job.frozen)
    _train(run, trainer, progress, resume=resume)
    seconds["train"] = time.perf_counter() - started
    founds, measured = _write_result(run, trainer, job)
    val = job.dataset.val
    write_fit_report(run, job.world, job.context, caching.seen(task, val), val.samples, founds)
    return FitResult(
        run.folder,
        trainer.best_epoch,
        measured.ap,
        measured.ap50,
        finished=trainer.epoch == job.config.epochs,
        seconds=seconds,
    )


def _train(run: RunFolder, trainer: Trainer, progress: Progress, *, resume: bool) -> None:
    """Epoch after epoch, each kept on disk, until all are done or the user stops it.

    Raises:  RunError: it was stopped before the first epoch was done.
    """
    state = load_state(run, trainer.context.ctx.shape) if resume else None
    if state is not None:
        trainer.restore(state)
    epochs = trainer.config.epochs
    try:
        while trainer.epoch < epochs:
            line = trainer.run_epoch()
            run.add_metrics(line)
            save_state(run, trainer.state())
            note = f"loss {line['loss']:.3f}  AP50 {line['ap50']:.3f}  AP {line['ap']:.3f}"
            progress("train", trainer.epoch, epochs, note)
    except KeyboardInterrupt:
        logger.warning("Stopped after epoch %d of %d; --resume goes on.", trainer.epoch, epochs)
    if not trainer.best_epoch:
        raise RunError(f"Stopped before the first epoch of {run.folder} was done. Start it again: the cache is kept.")


def _whole_path(place: str | Path) -> str:
    """The absolute path of a file or folder, so that a run works from anywhere; a name such as `tiny` as it is."""
    return str(Path(place).resolve()) if str(place) != TINY and Path(place).exists() else str(place)


def _write_result(run: RunFolder, trainer: Trainer, job: Job) -> tuple[list[Detections], Metrics]:
    """Prompts and learned vocabulary of the best epoch, with limits of overlap, thresholds and calibration, and their
    pictures.

    Those hold for validation images and held-out replayed ones together.

    Returns: what the trained classes find in the validation images, and its precision.
    """
    context, config, train = job.context, job.config, trainer.task.train
    with torch.no_grad():
        context.ctx.copy_(trainer.best_ctx)
    names = tuple(prompts[0] for prompts in context.classes)
    embeddings = context.embeddings() if job.earlier is None else job.earlier.keep(context, job.frozen)
    val = trainer.task.val
    labels, founds = trainer.task.detect(embeddings, replayed=True)
    iou = config.nms_iou or choose_nms_iou(labels, founds, len(names))
    nms_iou = np.full(len(names), iou, np.float32)
    founds = [found.distinct(nms_iou) for found in founds]
    n_val = len(val.files) - val.n_replay
    measured = average_precision(labels[:n_val], founds[:n_val], len(names))
    matched = match_classes(labels, founds, len(names))
    calibration = fit_calibration(names, matched) if config.calibrate else None
    final = matched if calibration is None else apply_calibration(matched, calibration)
    known = () if job.earlier is None else job.earlier.learned.names
    thresholds = choose_thresholds(names, final, precision=config.precision, known=known, calibration=calibration)
    learned = Vocabulary(
        names=names,
        embeddings=embeddings,
        thresholds=thresholds.values,
        calibration=calibration,
        nms_iou=nms_iou if iou < NMS_IOU else None,  # else the graph's own suppression does it
        kind="learned",
        guide_mode=config.guide,
        detector=job.world.digest,
        text_tower=context.tower.digest,
        guide=job.original.digest if config.guide == "original" else guide_digest(embeddings),
        provenance={
            "prompt_tune": __version__,
            "torch": torch.__version__.split("+")[0],
            "settings": config.as_json(),
            "epoch": trainer.best_epoch,
            "nms_iou": iou,
            "val_ap": round(measured.ap, 6),
            "val_ap50": round(measured.ap50, 6),
            "train_images": len(train.files) - train.n_replay,
            "replay_images": train.n_replay,
            "val_images": n_val,
            "thresholds": thresholds.as_json(names),
        },
    )
    whole = context
    if job.earlier is not None:
        unfound = [name for name, part in zip(names, matched, strict=True) if not part.correct.any()]
        whole, learned = job.earlier.join(context, job.earlier.keep_unfound(learned, unfound))
    save_context(whole, run.prompts, config.guide)
    learned.save(run.learned)
    draw_training(run.curves, run.read_metrics())
    draw_reliability(run.reliability, matched, None if calibration is None else final)
    return founds[:n_val], measured
