"""Learn context vectors for the classes of a data set on a frozen YOLO-World: cache once, then train on the cache.

The whole method in short: the original vocabulary guides the neck, so head features and boxes cannot depend on the
prompts. What is left to train is `ctx` (CoOp, arXiv 2109.01134), through the frozen text tower and the folded head.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prompt_tune.config import FitConfig
from prompt_tune.contract import NMS_IOU
from prompt_tune.datasets.opening import listed, require_all
from prompt_tune.datasets.reading import MIN_VAL
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import RunError
from prompt_tune.evaluation.baselines import Baseline
from prompt_tune.evaluation.calibration import apply_calibration, fit_calibration
from prompt_tune.evaluation.matching import Matched, match_classes
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.evaluation.thresholds import choose_nms_iou, choose_thresholds
from prompt_tune.files import saving
from prompt_tune.models.prompts_file import save_context
from prompt_tune.models.world import torch_device
from prompt_tune.progress import Epoch, Progress, silent, untold
from prompt_tune.report.figures import draw_reliability, draw_training
from prompt_tune.run import RESUME, RunFolder
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.devices import several
from prompt_tune.runtime.packing import uncalibrated
from prompt_tune.tuning.comparison import training_ap50, unlearned, why_nothing
from prompt_tune.tuning.convention import draw_as_labelled
from prompt_tune.tuning.folds import Judged, cross_validate, make_folds
from prompt_tune.tuning.job import FitInputs, Job, prepare
from prompt_tune.tuning.job_cache import Caching
from prompt_tune.tuning.ranks import Ranks
from prompt_tune.tuning.sharing import check_all, helpers, lead
from prompt_tune.tuning.state import load_state, save_state
from prompt_tune.tuning.summary import write_fit_report
from prompt_tune.tuning.tasks import Task
from prompt_tune.tuning.tiles import Tiling
from prompt_tune.tuning.trainer import Trainer
from prompt_tune.version import __version__
from prompt_tune.vocabulary.format import Provenance
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

MOSTLY = 0.95  # share of training images with an object from which background images are missed
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """The outcome of a fit.

    Attributes:
        run: The run folder.
        epoch: The epoch that was kept, counted from 1.
        ap: AP of the learned classes on the validation images, in 0..1.
        ap50: AP50 of the same.
        unlearned: What the plain class names and the best template give on the same images.
        finished: False if training was stopped before the last epoch.
        folds: 0 if there are validation images. Otherwise all images were trained on, and AP is that of a
            cross-validation with so many folds; 1 if no class is shown by two pictures: then it is that of the
            training images.
        seconds: Time by stage, "cache" and "train".
        tiling: How photos were cut into slices; AP is then that of sliced detection. None if they were not.
    """

    run: Path
    epoch: int
    ap: float
    ap50: float
    unlearned: tuple[Baseline, ...]
    finished: bool
    folds: int
    seconds: dict[str, float]
    tiling: Tiling | None = None


def fit(
    inputs: FitInputs,
    out: str | Path,
    *,
    config: FitConfig | None = None,
    resume: bool = False,
    strict: bool = False,
    device: str = "cpu",
    ranks: Ranks | None = None,
    progress: Progress = silent,
    on_epoch: Epoch = untold,
) -> FitResult:
    """Learn prompts for the classes of a data set.

    Args:
        inputs: What to learn from: detector, data set and the rest.
        out: The run folder to write.
        config: The settings; None takes the defaults.
        resume: Continue the run in `out`.
        strict: Whether anything of the data that is left out (unreadable images, bad label rows, ...) is an error.
            Otherwise it is counted, and the run folder lists it.
        device: A torch device, or several: "cuda:0,1" or "cpu,cpu" starts a process for each further one, which helps
            to fill the cache (see `sharing`). In a script, this needs `if __name__ == "__main__":`.
        ranks: The processes that torchrun has started; this one is rank 0.
        progress: Called as the work proceeds. KeyboardInterrupt, raised by it or by the user, ends the training; what
            was learned until then is kept.
        on_epoch: Called after each epoch with its line of metrics.jsonl.

    Returns:
        The epoch that is kept: the best one by AP on the validation images, or the last one if those are few.

    Raises:
        PromptTuneError: Something cannot be used or written. What was written before is whole.
    """
    devices, config = several(device), config or FitConfig()
    device = torch_device(devices[0])
    check_all(devices)
    run = RunFolder(Path(out))
    with ranks or nullcontext():
        recorded = run.held_out() if resume and run.config.is_file() else None
        job = prepare(inputs, config, device, recorded, strict=strict)
        few, val = job.dataset.few, job.dataset.measured
        run.open(job.as_json() | inputs.as_json(), resume=resume)
        job.original.save(run.original)
        _say_if_no_background(job)
        started = time.perf_counter()
        caching = Caching(job.world, job.original, inputs.cache_folder(run.folder), job.config, progress)
        if ranks is not None:
            lead(caching, job, ranks, progress, resumed=recorded is not None)
    if len(devices) > 1:
        with helpers(devices, inputs, run.folder, config=config, strict=strict) as started_here:
            lead(caching, job, started_here, progress, resumed=recorded is not None)
    task = caching.task(job.dataset, job.replayed)
    seen = caching.seen(task, val)
    _list_left_out(run, job, task, strict=strict)
    seconds = {"cache": time.perf_counter() - started}

    started = time.perf_counter()
    folds = _folds(task, job) if few else []
    judged = _cross_validate(job, task, folds, run, progress) if folds else None
    trainer = _trainer(job, task, select=not few, keep_last=_has_few_to_measure(task))
    _train(run, trainer, progress, on_epoch, resume=resume)
    seconds["train"] = time.perf_counter() - started
    chosen = _choose(trainer, job, judged, len(folds))
    _write(run, chosen, job)
    boxes = sum(part.n_objects for part in chosen.matched)  # replayed images have none
    where = "images that were left out of the training" if few else "the validation images"
    verdict = why_nothing(chosen.measured.ap50, chosen.trained_ap50, boxes, job.config.image_size, where)
    if verdict:
        logger.warning("%s %s shows training images with their boxes.", verdict, run.report)
    write_fit_report(
        run,
        job.world,
        job.context,
        seen,
        val.samples,
        chosen.found,
        before=chosen.before,
        train=job.dataset.train.photos,
        unlearned=chosen.unlearned,
        verdict=verdict,
    )
    return FitResult(
        run.folder,
        trainer.best_epoch,
        chosen.measured.ap,
        chosen.measured.ap50,
        chosen.unlearned,
        finished=trainer.epoch == job.config.epochs,
        folds=len(folds) or int(few),
        seconds=seconds,
        tiling=job.tiling,
    )


def _list_left_out(run: RunFolder, job: Job, task: Task, *, strict: bool) -> None:
    """Write all that is left out of the data to the run folder; images are decoded by now.

    Raises:
        DataError: `strict`, and an image is damaged in its middle.
        RunError: The file cannot be written.
    """
    skipped = dict.fromkeys(task.train.skipped + task.val.skipped)  # with few images, both have the same ones
    damaged = [LeftOut(Reason.IMAGE, what) for what in skipped]
    require_all(damaged, strict=strict)
    parts = {"train": job.dataset.train, "val": job.dataset.val, "replay": job.replayed.train}
    entries = {name: split.left_out for name, split in parts.items()} | {"while decoding": tuple(damaged)}
    if text := listed(entries):
        with saving(run.left_out, RunError, cure=RESUME) as path:
            path.write_text(text, "utf-8", errors="surrogateescape")


def _say_if_no_background(job: Job) -> None:
    """Warn if nearly all training images show an object, so that nothing teaches the classes what they are not."""
    samples = job.dataset.train.samples
    shown = sum(len(sample.labels) > 0 for sample in samples)
    if shown >= MOSTLY * len(samples) and not job.replayed.train.samples:
        logger.warning(
            "%d of %d training images%s show an object, so the classes may fire on similar things. Add images without "
            "the objects, with --replay or as unlabelled training images, and count false alarms with `verify`.",
            shown,
            len(samples),
            "" if job.tiling is None else " and their slices",
        )


def _has_few_to_measure(task: Task) -> bool:
    """Whether fewer than `MIN_VAL` validation images have an object, so that the best epoch on them would be chance."""
    return sum(map(task.val.has_object, task.val.wholes)) < MIN_VAL


def _folds(task: Task, job: Job) -> list[list[int]]:
    """The training images of each fold; all windows of a photo are in the same one."""
    photos = [job.dataset.train.samples[task.train.kept[i]] for i in task.train.wholes]
    return [task.train.images_of(fold) for fold in make_folds(photos, job.config.seed)]


def _trainer(
    job: Job, task: Task, images: Sequence[int] | None = None, *, select: bool, keep_last: bool = False
) -> Trainer:
    """A trainer of the job's context; see `Trainer`."""
    return Trainer(
        task,
        job.context,
        job.config,
        teacher=job.teacher,
        stand_ins=job.stand_ins(),
        frozen=job.frozen,
        images=images,
        select=select,
        keep_last=keep_last,
    )


def _cross_validate(job: Job, task: Task, folds: Sequence[Sequence[int]], run: RunFolder, progress: Progress) -> Judged:
    """Labels and detections of the training images, by prompts that were not trained on them."""
    return cross_validate(
        task,
        job.context,
        lambda images: _trainer(job, task, images, select=False),
        lambda: _embeddings(job),
        folds,
        run,
        progress,
        known=() if job.earlier is None else range(len(job.context.classes)),
    )


def _embeddings(job: Job) -> np.ndarray:
    """The embeddings of the context as it is: (n_cls, n_prompts, 512) float32."""
    return job.context.embeddings() if job.earlier is None else job.earlier.keep(job.context, job.frozen)


def _train(run: RunFolder, trainer: Trainer, progress: Progress, on_epoch: Epoch, *, resume: bool) -> None:
    """Train epoch after epoch until all are done or the user stops; the state after each one is kept on disk.

    Raises:
        RunError: The user stopped before the first epoch was done, or the run folder cannot be written.
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
            on_epoch(line)
            measured = f"  AP50 {line['ap50']:.3f}  AP {line['ap']:.3f}" if "ap" in line else ""
            progress("train", trainer.epoch, epochs, f"loss {line['loss']:.3f}{measured}")
    except KeyboardInterrupt:
        logger.warning("Stopped after epoch %d of %d. Continue with --resume.", trainer.epoch, epochs)
    if not trainer.best_epoch:
        raise RunError(
            f"Training in {run.folder} was stopped before the first epoch was done. Start it again: the cache is kept."
        )
    kept = f"kept: epoch {trainer.best_epoch}"
    if trainer.select:
        kept += f"  AP50 {trainer.best_ap50:.3f}  AP {trainer.best_ap:.3f}"
    with suppress(KeyboardInterrupt):  # the training is over in any case
        progress("train", trainer.epoch, epochs, kept)  # what the bar shows in the end


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The result of training, with everything that is chosen on the validation images.

    Attributes:
        learned: The vocabulary of the classes that were trained.
        before: The detections of its classes on the validation images of the data set, with the detector's own boxes.
        found: The same after suppression, with boxes as the labels of each class are drawn.
        measured: Their AP.
        trained_ap50: Their AP50 on training images; None if those have too few boxes.
        unlearned: What the names give without learning.
        matched: Their verdicts by class, replayed images included, before calibration.
        calibrated: The same after calibration; None without one.
    """

    learned: Vocabulary
    before: list[Detections]
    found: list[Detections]
    measured: Metrics
    trained_ap50: float | None
    unlearned: tuple[Baseline, ...]
    matched: list[Matched]
    calibrated: list[Matched] | None


def _choose(trainer: Trainer, job: Job, judged: Judged | None, n_folds: int) -> _Chosen:
    """Take the context of the best epoch, and choose NMS IoU, calibration and thresholds for it.

    They are chosen on the validation images, or on what the cross-validation found, together with the replayed images
    that were held out.
    """
    context, config, task = job.context, job.config, trainer.task
    with torch.no_grad():
        context.ctx.copy_(trainer.best_ctx)
    names = tuple(prompts[0] for prompts in context.classes)
    embeddings = _embeddings(job)
    n_val = len(task.val.files) - task.val.n_replay
    labels, found = task.detect(embeddings, whole=True) if judged is None else judged
    if task.val.n_replay:
        more = task.detect(embeddings, images=range(n_val, len(task.val.files)), whole=True)
        labels, found = labels + more[0], found + more[1]
    train = [job.dataset.train.samples[i] for i in task.train.kept]
    drawn = draw_as_labelled(
        task, embeddings, labels, found, config.boxes, train=train, cross_validated=judged is not None
    )
    labels, offsets, n_photos = task.val.labels_seen(labels), drawn.offsets, len(task.val.wholes)
    iou = config.nms_iou or choose_nms_iou(labels, drawn.found, len(names), task.val.seen)
    nms_iou = np.full(len(names), iou, np.float32)
    found = task.val.seen(drawn.found, nms_iou)
    trained_ap50 = training_ap50(task, embeddings, nms_iou)
    names_alone = unlearned(task, context)
    matched = match_classes(labels, found, len(names))
    calibration = fit_calibration(names, matched) if config.calibrate else None
    calibrated = None if calibration is None else apply_calibration(matched, calibration)
    thresholds = choose_thresholds(
        names,
        matched if calibrated is None else calibrated,
        precision=config.precision,
        known=() if job.earlier is None else job.earlier.learned.names,
        calibration=calibration,
    )
    if job.tiling is not None:  # no box above its threshold gives way to one below
        found = task.val.seen(drawn.found, nms_iou, uncalibrated(thresholds.values, calibration))
    measured = average_precision(labels[:n_photos], found[:n_photos], len(names))
    provenance: Provenance = {
        "prompt_tune": __version__,
        "torch": torch.__version__.split("+")[0],
        "settings": config.as_json(),
        "epoch": trainer.best_epoch,
        "nms_iou": iou,
        "val_ap": round(measured.ap, 6),
        "val_ap50": round(measured.ap50, 6),
        "unlearned": [part.to_record() for part in names_alone],
        "train_images": len(task.train.wholes),
        "replay_images": task.train.n_replay,
        "val_images": n_photos,
        "thresholds": thresholds.as_json(names),
    }
    if trained_ap50 is not None:
        provenance["train_ap50"] = round(trained_ap50, 6)
    if job.dataset.held_out:
        provenance["held_out"] = len(job.dataset.val.photos)
    if job.tiling is not None:
        provenance["tiled"] = job.tiling.to_record()
    if offsets is not None:
        provenance["boxes"] = offsets.to_record(names)
    if job.dataset.few:
        provenance["cross_validated"] = n_folds or 1
        if not n_folds:
            logger.warning(
                "No class is shown by two pictures: thresholds and AP come from the images that were trained on, so "
                "they are too good. Label more."
            )
    learned = Vocabulary(
        names=names,
        embeddings=embeddings,
        thresholds=thresholds.values,
        calibration=calibration,
        nms_iou=nms_iou if iou < NMS_IOU else None,  # otherwise the graph's own suppression does it
        box_offsets=offsets.values if offsets is not None and offsets.values.any() else None,
        kind="learned",
        guide_mode=config.guide,
        detector=job.world.digest,
        text_tower=context.tower.digest,
        guide=job.original.digest if config.guide == "original" else guide_digest(embeddings),
        provenance=provenance,
    )
    before = task.val.seen(drawn.before)[:n_photos]
    return _Chosen(learned, before, found[:n_photos], measured, trained_ap50, names_alone, matched, calibrated)


def _write(run: RunFolder, chosen: _Chosen, job: Job) -> None:
    """Write prompts, learned vocabulary and plots, with the classes of the earlier run if there is one."""
    context, learned = job.context, chosen.learned
    if job.earlier is not None:
        pairs = zip(learned.names, chosen.matched, strict=True)
        unfound = [name for name, part in pairs if not part.correct.any()]
        context, learned = job.earlier.join(context, job.earlier.keep_unfound(learned, unfound))
    save_context(context, run.prompts, job.config.guide)
    learned.save(run.learned)
    draw_training(run.curves, run.read_metrics())
    draw_reliability(run.reliability, chosen.matched, chosen.calibrated)
