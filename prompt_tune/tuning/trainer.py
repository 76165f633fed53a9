"""The training loop: AdamW on the context vectors over cached images, one epoch per call."""

import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tune.config import FitConfig
from prompt_tune.evaluation.metrics import Metrics, average_precision
from prompt_tune.models.context import PromptContext
from prompt_tune.tuning.loss import ClassSample, teacher_distance
from prompt_tune.tuning.stand_ins import StandIns
from prompt_tune.tuning.state import TrainState
from prompt_tune.tuning.tasks import Task
from prompt_tune.tuning.views import MOST_VIEWS

CLASSES, FEWEST_OTHERS = 64, 16  # an update encodes so many classes, and at least so many that it has no box of
MOST_SHOWN = 2 * CLASSES - FEWEST_OTHERS  # classes that an update has boxes of: rather than more, it takes fewer images
SIZE_DRAWS = 5  # draws of images from which that number comes
MANY_IMAGES, MANY_CLASSES, FEWEST_MEASURED = 250, 250, 4  # with more, not every epoch is measured; epochs that are
BETAS = 0.7, 0.8  # short memory of AdamW: 120 updates reach what 600 did; with its usual (0.9, 0.999) they lose 2 AP
SELECTION_CONF = 0.01  # the metric of an epoch leaves out lower scores: the curve of a learned class ends above it


class Trainer:
    """AdamW on `ctx`. Everything that a resumed run needs is in `state`."""

    def __init__(
        self,
        task: Task,
        context: PromptContext,
        config: FitConfig,
        *,
        teacher: Tensor | None = None,
        stand_ins: StandIns | None = None,
        frozen: Sequence[bool] = (),
        images: Sequence[int] | None = None,
        select: bool = True,
        keep_last: bool = False,
    ) -> None:
        """Prepare; nothing is trained yet.

        Args:
            task: The images to train and to measure on.
            context: The context vectors, which are changed in place.
            config: The settings.
            teacher: (n_cls, n_prompts, 512) float32, unit rows. The embeddings are kept near to them, with the weight
                `config.teacher_weight`.
            stand_ins: Negatives without images, with the weight `config.stand_ins`.
            frozen: For each class, whether its context stays as it is. Empty if all are trained.
            images: The labelled images to train on; None takes all.
            select: Whether each epoch is measured on the validation images, and the best one is kept. Otherwise the
                last one is.
            keep_last: Whether the last epoch is kept although each is measured: the best one of a few images is chance.
        """
        self.task, self.context, self.config, self.teacher = task, context, config, teacher
        self.select, self.keep_last, self.stand_ins = select, keep_last, stand_ins
        n_labelled = len(task.train.files) - task.train.n_replay
        self.images = np.arange(n_labelled) if images is None else np.array(images)
        if any(frozen):
            moving = ~torch.tensor(frozen, device=context.ctx.device)
            context.ctx.register_hook(lambda gradient: gradient * moving[:, None, None, None])
        self.optimizer = torch.optim.AdamW([context.ctx], lr=config.learning_rate, betas=BETAS, weight_decay=0.0)
        self.epoch, self.best_epoch, self.n_updates = 0, 0, 0  # the last: updates of the latest epoch
        self.best_ap, self.best_ap50 = -1.0, -1.0
        self.best_ctx = context.ctx.detach().clone()

    def run_epoch(self) -> dict[str, Any]:
        """Train on every image, once or several times, each time in one of its views, and measure.

        Returns:
            The line for metrics.jsonl.
        """
        started = time.perf_counter()
        batches = self._batches(np.random.default_rng([self.config.seed, 21, self.epoch]))
        chance = np.random.default_rng([self.config.seed, 22, self.epoch])
        self.n_updates = n_steps = len(batches)
        total = 0.0
        for step, (chosen, view) in enumerate(batches):
            rate = self._learning_rate(self.epoch * n_steps + step, n_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._loss(chosen.tolist(), view.tolist(), chance)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(chosen)
        self.epoch += 1
        metrics = self._measure() if self._is_measured() else None
        if not self.select or self.keep_last or (metrics is not None and metrics.ap > self.best_ap):
            self.best_epoch, self.best_ctx = self.epoch, self.context.ctx.detach().clone()
            if metrics is not None:
                self.best_ap, self.best_ap50 = metrics.ap, metrics.ap50
        measured = {} if metrics is None else {"ap": metrics.ap, "ap50": metrics.ap50}
        return {
            "epoch": self.epoch,
            "loss": total / sum(len(chosen) for chosen, _ in batches),
            **measured,
            "learning_rate": rate,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _loss(self, chosen: list[int], views: list[int], chance: np.random.Generator) -> Tensor:
        """The loss of an update. With many classes, it encodes those of its images and a sample of the others."""
        sample = self._sample(chosen, views, chance)
        embeddings = self.context(None if sample is None else sample.classes)
        loss = self.task.loss(embeddings, chosen, views, sample)
        if self.teacher is not None:
            teacher = self.teacher if sample is None else self.teacher[sample.classes]
            weights = None if sample is None else sample.weights
            loss = loss + self.config.teacher_weight * teacher_distance(embeddings, teacher, weights)
        if self.stand_ins is not None:
            loss = loss + self.config.stand_ins * self.stand_ins.loss(embeddings, sample)
        return loss

    def _sample(self, chosen: list[int], views: list[int], chance: np.random.Generator) -> ClassSample | None:
        """The classes that an update encodes: those of its images and, up to `CLASSES`, others; None for all classes.

        Each of the others stands for all that have no box in the images, so the loss is unbiased.
        """
        n_cls = len(self.context.classes)
        shown = self.task.labelled(chosen, views) if n_cls > CLASSES else None
        if shown is None:
            return None
        others = np.setdiff1d(np.arange(n_cls), shown)
        drawn = chance.choice(others, min(len(others), max(FEWEST_OTHERS, CLASSES - len(shown))), replace=False)
        classes = np.sort(np.concatenate([shown, drawn]))
        weights = np.where(np.isin(classes, shown), 1, len(others) / max(1, len(drawn))).astype(np.float32)
        device = self.context.ctx.device
        return ClassSample(torch.from_numpy(classes).to(device), torch.from_numpy(weights).to(device))

    def _is_measured(self) -> bool:
        """Whether AP is measured after this epoch: each, or with much to measure the first, some and the last."""
        n_val = len(self.task.val.files) - self.task.val.n_replay
        costly = n_val // MANY_IMAGES + len(self.context.classes) // MANY_CLASSES
        every = min(1 + costly, max(1, self.config.epochs // FEWEST_MEASURED))
        return self.select and (not self.best_epoch or (self.config.epochs - self.epoch) % every == 0)

    def _batches(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """The images of each update of an epoch, and the view of each.

        All labelled images are seen equally often. In each pass over them, every replayed image is seen once; replayed
        images are added to these updates and do not make their number larger. Where an update has room for more images
        than there are, each comes in several views.
        """
        files, n_replay = self.task.train.files, self.task.train.n_replay
        n_labelled, size = len(self.images), self._size
        n_steps = math.ceil(n_labelled / size)
        n_views, replay_views = max(1, self.config.views), len(files[-1]) if n_replay else MOST_VIEWS
        together = max(1, min(n_views, replay_views, size // n_labelled))  # views of an image in an update
        batches = []
        for _ in range(max(1, self.config.updates // n_steps)):
            order, view = rng.permutation(n_labelled), _draw_views(rng, n_labelled, n_views, together)
            replayed, replay_view = rng.permutation(n_replay), _draw_views(rng, n_replay, replay_views, together)
            for k, more in enumerate(np.array_split(replayed, n_steps)):
                own = order[k * size : (k + 1) * size]
                chosen = np.concatenate([self.images[own], len(files) - n_replay + more])
                views = np.concatenate([view[own], replay_view[more]])  # (n, together)
                batches.append((chosen.repeat(together), views.flatten()))
        return batches

    @cached_property
    def _size(self) -> int:
        """Images of an update: those of the settings, or so few that they show about `MOST_SHOWN` classes."""
        size = self.config.batch
        if len(self.context.classes) <= MOST_SHOWN:
            return size
        for draw in range(SIZE_DRAWS):
            order = np.random.default_rng([self.config.seed, 23, draw]).permutation(self.images)[:size]
            shown = [self.task.labelled([image], [0]) for image in order.tolist()]
            known = [classes for classes in shown if classes is not None]
            counts = [len(np.unique(np.concatenate(known[: n + 1]))) for n in range(len(known))]
            fitting = sum(count <= MOST_SHOWN for count in counts)
            if fitting < len(known):
                size = max(1, fitting)
        return size

    def _measure(self) -> Metrics:
        """COCO's numbers of the present embeddings on the validation images."""
        embeddings = self.context.embeddings()
        labels, found = self.task.detect(embeddings, conf=SELECTION_CONF)
        return average_precision(self.task.val.labels_seen(labels), self.task.val.seen(found), len(embeddings))

    def _learning_rate(self, step: int, n_steps: int) -> float:
        """The rate at a step: one epoch of linear warm-up, then a cosine to zero."""
        warm_up, end = n_steps, n_steps * self.config.epochs
        if step < warm_up:
            return self.config.learning_rate * (step + 1) / warm_up
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, end - warm_up)))

    def state(self) -> TrainState:
        """All that the next epoch depends on."""
        moments = self.optimizer.state[self.context.ctx]
        return TrainState(
            epoch=self.epoch,
            best_epoch=self.best_epoch,
            best_ap=self.best_ap,
            best_ap50=self.best_ap50,
            step=int(moments["step"]),
            tensors={
                "ctx": self.context.ctx.detach(),
                "best_ctx": self.best_ctx,
                "exp_avg": moments["exp_avg"],
                "exp_avg_sq": moments["exp_avg_sq"],
            },
        )

    def restore(self, state: TrainState) -> None:
        """Continue where `state` was taken."""
        self.epoch, self.best_epoch = state.epoch, state.best_epoch
        self.best_ap, self.best_ap50 = state.best_ap, state.best_ap50
        tensors = {name: tensor.to(self.context.ctx.device) for name, tensor in state.tensors.items()}
        self.best_ctx = tensors["best_ctx"]
        with torch.no_grad():
            self.context.ctx.copy_(tensors["ctx"])
        self.optimizer.state[self.context.ctx] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": tensors["exp_avg"],
            "exp_avg_sq": tensors["exp_avg_sq"],
        }


def _draw_views(rng: np.random.Generator, n_images: int, n_views: int, count: int) -> np.ndarray:
    """(n_images, count) int64: different views of each image."""
    return rng.random((n_images, n_views)).argsort(axis=1)[:, :count]
