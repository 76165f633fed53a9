"""Cross-validation: few photos are all trained on, and each is measured with prompts that were not trained on it."""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from prompt_tune.config import FitConfig
from prompt_tune.datasets.held_out import has_box, pictures
from prompt_tune.datasets.samples import Labels, Sample
from prompt_tune.errors import RunError
from prompt_tune.files import read_sealed, saving, sealed_bytes
from prompt_tune.models.context import PromptContext
from prompt_tune.progress import Progress
from prompt_tune.run import RESUME, RunFolder
from prompt_tune.runtime.detections import Detections
from prompt_tune.tuning.tasks import Task
from prompt_tune.tuning.trainer import Trainer

FOLDS = 5  # with five pictures or fewer, one is left out at a time
Judged = tuple[list[Labels], list[Detections]]  # one of each for each image
logger = logging.getLogger(__name__)


def make_folds(samples: Sequence[Sample], seed: int) -> list[list[int]]:
    """Divides images into folds in which each class is shown about equally often.

    Copies of one picture stay together.

    Args:
        samples: The images.
        seed: Draws the order in which they are dealt.

    Returns:
        The images of each fold, rising; nothing if no class is shown by two pictures.
    """
    groups: dict[int, list[int]] = {}
    for index, number in enumerate(pictures([sample.path for sample in samples])):
        groups.setdefault(number, []).append(index)
    shown = {number: set().union(*(_classes(samples[i]) for i in members)) for number, members in groups.items()}
    n_folds = min(FOLDS, sum(any(has_box(samples[i]) for i in members) for members in groups.values()))
    frequency = {k: sum(k in classes for classes in shown.values()) for k in set().union(*shown.values())}
    if max(frequency.values(), default=0) < 2:
        return []
    numbers = [list(groups)[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    numbers.sort(key=lambda number: min((frequency[k] for k in shown[number]), default=len(samples) + 1))  # stable
    folds: list[list[int]] = [[] for _ in range(n_folds)]
    counts = [dict.fromkeys(frequency, 0) for _ in folds]
    for number in numbers:  # the rarest class first: to the fold that shows it least, then to the smallest
        shared = [k for k in shown[number] if frequency[k] > 1]  # a class of one picture cannot be validated anywhere
        rarest = min(shared, key=lambda k: (frequency[k], k), default=None)
        place = min(
            range(n_folds),
            key=lambda fold: (0 if rarest is None else counts[fold][rarest], len(folds[fold]), fold),
        )
        folds[place] += groups[number]
        for k in shown[number]:
            counts[place][k] += 1
    return [sorted(fold) for fold in folds]


def cross_validate(
    task: Task,
    context: PromptContext,
    trainer: Callable[[Sequence[int]], Trainer],
    embeddings: Callable[[], np.ndarray],
    folds: Sequence[Sequence[int]],
    run: RunFolder,
    progress: Progress,
    *,
    known: Collection[int] = (),
) -> Judged:
    """Train without each fold in turn, and detect in its images. The context is left as it was.

    Finished folds are kept in the run folder, so that a stopped run continues.

    Args:
        task: The images; `val` has the labelled images of `train`, with all anchors.
        context: The context vectors at the start.
        trainer: Makes a trainer of the context on some of the labelled images.
        embeddings: The embeddings of the context as it is.
        folds: From `make_folds`.
        run: The run folder.
        progress: Called after each epoch.
        known: Classes that were learned before. Of any other class, labels and detections in a fold are dropped if
            no other fold shows it, since nothing was learned of it.

    Returns:
        Labels and detections of each labelled image, as `Task.detect` gives them, with whole boxes.

    Raises:
        RunError: The user stopped, or the run folder cannot be written or is damaged.
    """
    labels: dict[int, Labels] = {}
    found: dict[int, Detections] = {}
    start = context.ctx.detach().clone()
    done = _load(run, start.shape)
    n_images = sum(map(len, folds))
    for k, fold in enumerate(folds):
        rest = sorted(set(range(n_images)) - set(fold))
        if k < len(done):
            learned = done[k].to(start.device)
        else:
            learned = _learn(trainer(rest), k, len(folds), progress)
            done.append(learned.cpu())
            _save(run, done)
        with torch.no_grad():
            context.ctx.copy_(learned)
        for i, own, seen in zip(fold, *task.detect(embeddings(), images=fold, whole=True), strict=True):
            labels[i], found[i] = own, seen
        with torch.no_grad():
            context.ctx.copy_(start)
    rare = set().union(*(set(part.classes[~part.ignore].tolist()) for part in labels.values()))
    for fold in folds:
        elsewhere = set(known).union(*(set(labels[i].classes.tolist()) for i in labels if i not in set(fold)))
        for i in fold:
            labels[i], found[i] = _of_classes(labels[i], elsewhere), _found_of_classes(found[i], elsewhere)
    rare -= set().union(*(set(part.classes.tolist()) for part in labels.values()))
    if rare:
        logger.warning(
            "Too rare to validate: %s. Only one picture shows such a class, so AP leaves it out, and its threshold is "
            "the default. Label more images of it.",
            ", ".join(context.classes[k][0] for k in sorted(rare)),
        )
    return [labels[i] for i in range(n_images)], [found[i] for i in range(n_images)]


def _learn(trainer: Trainer, fold: int, n_folds: int, progress: Progress) -> torch.Tensor:
    """The context after all epochs of a fold."""
    config: FitConfig = trainer.config
    total = n_folds * config.epochs
    try:
        while trainer.epoch < config.epochs:
            line = trainer.run_epoch()
            note = f"fold {fold + 1} of {n_folds}  loss {line['loss']:.3f}"
            progress("cross-validate", fold * config.epochs + trainer.epoch, total, note)
    except KeyboardInterrupt as error:
        raise RunError("Stopped in the cross-validation, before the training. Continue with --resume.") from error
    return trainer.best_ctx


def _classes(sample: Sample) -> set[int]:
    """The classes of an image, without ignored boxes."""
    return set(sample.labels.classes[~sample.labels.ignore].tolist())


def _of_classes(labels: Labels, classes: Collection[int]) -> Labels:
    kept = np.isin(labels.classes, list(classes))
    return Labels(labels.boxes_xyxy[kept], labels.classes[kept], labels.ignore[kept])


def _found_of_classes(found: Detections, classes: Collection[int]) -> Detections:
    return found.select(np.flatnonzero(np.isin(found.class_ids, list(classes))))


def _save(run: RunFolder, contexts: Sequence[torch.Tensor]) -> None:
    """Write the contexts of the folds that are done."""
    data = sealed_bytes({"ctx": torch.stack(list(contexts)).numpy()}, {"folds": len(contexts)})
    with saving(run.folds, RunError, cure=RESUME) as path:
        path.write_bytes(data)


def _load(run: RunFolder, shape: torch.Size) -> list[torch.Tensor]:
    """The contexts of the folds that are done."""
    if not run.folds.exists():
        return []

    def check(_: dict[str, Any], names: set[str]) -> None:
        if names != {"ctx"}:
            raise ValueError(f"it must hold `ctx`. Received: {sorted(names)}")

    try:
        _, arrays = read_sealed(run.folds, check)
    except (OSError, ValueError) as error:
        raise RunError(f"{run.folds} is damaged: {error}. Delete it to train the folds again.") from error
    if arrays["ctx"].shape[1:] != shape or not np.isfinite(arrays["ctx"]).all():
        raise RunError(
            f"{run.folds} must hold finite contexts of shape {tuple(shape)}. Delete it to train the folds again."
        )
    return list(torch.from_numpy(arrays["ctx"]))
