"""What the learned classes are compared with: the names without learning, and the training images themselves."""

from collections.abc import Sequence

import numpy as np

from prompt_tune.contract import METRIC_CONF
from prompt_tune.evaluation.baselines import PLAIN, Baseline, best, name_embeddings
from prompt_tune.evaluation.metrics import average_precision, coco_evaluation
from prompt_tune.models.context import PromptContext
from prompt_tune.tuning.tasks import Task
from prompt_tune.tuning.trainer import SELECTION_CONF
from prompt_tune.vocabulary.names import read_templates

CHOSEN_ON = 30  # validation images on which the template is chosen: all templates on all images would take too long
MANY = 100  # classes; with more, the template is chosen on fewer images
TRAINED = 100  # training images whose AP50 is compared with that of the validation images
NOTHING = 0.05  # a fit with a lower AP50 came to nothing
FAR = 0.5  # so did one whose AP50 is below this share of that of its own training images: a usual gap is far smaller
ENOUGH = 10  # labelled boxes; with fewer, chance alone can halve AP50


def unlearned(task: Task, context: PromptContext) -> tuple[Baseline, ...]:
    """Measure the plain names and the best template on the validation images, without the replayed ones.

    The template is chosen by AP50 on some of the same images; `Baseline.chosen` says so.

    Returns:
        The plain names first. The template is left out if all sentences are too long for the text tower.
    """
    texts, val = context.texts, task.val
    rows = dict(enumerate(prompts[0] for prompts in texts))

    def measure(
        template: str, chosen: str, only: Sequence[int] | None = None, conf: float = METRIC_CONF
    ) -> Baseline | None:
        embeddings = name_embeddings(context.tower, texts, template)
        if embeddings is None:
            return None
        images = None if only is None else val.images_of(only)
        labels, found = task.detect(embeddings, images=images, conf=conf)
        measured = coco_evaluation(val.labels_seen(labels, images), val.seen(found, images=images), len(rows))
        return Baseline.of(template, chosen, measured, rows)

    wholes = val.wholes
    shown = [photo for photo, image in enumerate(wholes) if val.has_object(image)]
    most = min(CHOSEN_ON, CHOSEN_ON * MANY // len(rows)) * len(wholes) // (len(val.files) - val.n_replay)
    some = _spread(shown, max(1, most))
    tried = [measure(template, "", some, SELECTION_CONF) for template in read_templates()]
    known = [part for part in tried if part is not None]
    chosen = best(known)
    where = "these images" if len(some) == len(shown) else f"{len(some)} of these images"
    found = [measure(PLAIN, "")]
    if chosen is not None:
        found.append(measure(chosen.template, f"the best of {len(known)} templates on {where}"))
    return tuple(part for part in found if part is not None)


def training_ap50(task: Task, embeddings: np.ndarray, nms_iou: np.ndarray) -> float | None:
    """AP50 on training images as they are, without the replayed ones; at most `TRAINED` of them.

    A training image has only the anchors of its region budget. In two fits, their AP50 was 0.983 and 0.874, and that of
    all anchors 0.981 and 0.893.

    Args:
        task: The images.
        embeddings: (n_cls, n_prompts, 512) float32.
        nms_iou: (n_cls,) float32, the overlap above which a box is suppressed.

    Returns:
        In 0..1; None with fewer than `ENOUGH` boxes.
    """
    chosen = _spread(range(len(task.train.files) - task.train.n_replay), TRAINED)
    labels, found = task.detect(embeddings, images=chosen, trained=True)
    if sum(int((~part.ignore).sum()) for part in labels) < ENOUGH:
        return None
    return average_precision(labels, [part.distinct(nms_iou) for part in found], len(embeddings)).ap50


def why_nothing(ap50: float, trained: float | None, boxes: int, image_size: int, where: str) -> str:
    """What to say of a fit that came to nothing: the figures and the usual causes. Empty if it did not.

    Args:
        ap50: On the validation images.
        trained: On training images, from `training_ap50`.
        boxes: The number of labelled boxes in the validation images.
        image_size: The side of the network's input in pixels.
        where: The validation images in words.
    """
    if ap50 < NOTHING:
        return (
            f"The fit came to nothing: AP50 is {ap50:.3f} on {where}. The usual causes: boxes or class "
            "ids that do not fit the images, too few images or epochs, validation images unlike the training images, "
            f"objects too small at image size {image_size}, or class names that do not say what the objects look like "
            "(--names)."
        )
    if trained is not None and boxes >= ENOUGH and ap50 < FAR * trained:
        return (
            f"What was learned does not carry over: AP50 is {ap50:.3f} on {where} and {trained:.3f} on "
            "the training images. The usual causes: validation images unlike the training images, boxes or class ids "
            "that do not fit the images in one of them, or too few training images."
        )
    return ""


def _spread(items: Sequence[int], most: int) -> list[int]:
    """All items, or `most` of them at equal distances."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
