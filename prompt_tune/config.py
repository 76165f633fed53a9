"""The settings of a fit, with defaults, limits and reasons in one place: the command line is made from them."""

import math
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from prompt_tune.contract import NMS_IOU, GuideMode
from prompt_tune.errors import RunError

TINY_IMAGE_SIZE, IMAGE_SIZE = 256, 640  # pixels: what `tiny` and YOLO-World's checkpoints were trained at
LARGEST_STRIDE = 32  # pixels of the network's input
Boxes = Literal["calibrated", "frozen"]
TokenPosition = Literal["end", "middle", "front"]  # of the class name: after, within or before the context


@dataclass(frozen=True)
class RegionBudget:
    """How many anchors of a training image are kept.

    Together they reach the AP of all anchors. Without the last two kinds, false alarms double.

    Attributes:
        in_box: Anchors inside the box of an object. If there are more, each object's best by overlap, in turn.
        top: Anchors with the highest original scores: they look like objects, and are not ours.
        random: Anchors of plain background.
    """

    in_box: int = 600
    top: int = 50
    random: int = 64


def setting(
    default: Any,
    reason: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    why: str = "",
) -> Any:
    """A field of the settings.

    Args:
        default: Its default.
        reason: The sentence that `--help` shows.
        least: The smallest value that is allowed.
        most: The largest value that is allowed.
        above: A number that the value must exceed.
        below: A number that the value must stay below.
        choices: The words that are allowed.
        why: The reason for the limits, a clause that the error adds.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    return field(default=default, metadata={"help": reason, "limits": limits, "choices": choices, "why": why})


@dataclass(frozen=True)
class FitConfig:
    """What decides the result of a fit, besides detector, text tower, original vocabulary and data.

    Raises:
        RunError: A setting is outside its limits, or two settings do not go together.
    """

    context_length: int = setting(
        4, "Number of context vectors for each name. 16 find slightly more than 4 and take longer.", least=1
    )
    class_specific: bool = setting(True, "Learn a context of its own for each class, or one that all classes share.")
    token_position: TokenPosition = setting(
        "end", "Where the class name stands: after, within or before the context.", choices=get_args(TokenPosition)
    )
    prompts_per_class: int = setting(
        1,
        "Number of prompts to learn for each name and synonym; the best one counts. Needs class-specific context.",
        least=1,
    )
    initial_words: str = setting(
        "", "Words that the context starts from; they must have as many tokens as the context. Empty: random vectors."
    )
    teacher_weight: float = setting(
        0.0,
        "Weight of the distance to the embeddings of hand-written prompts. More weight keeps the meaning of a known "
        "name.",
        least=0,
    )
    stand_ins: float = setting(
        0.0,
        "Weight of negatives that need no image: the embedding of each original class in the place of regions that "
        "show it. More weight gives fewer false alarms on what the original vocabulary knows.",
        least=0,
    )
    guide: GuideMode = setting(
        "original",
        "What steers the neck: the original vocabulary, or the learned classes themselves, which takes a second pass.",
        choices=get_args(GuideMode),
    )
    epochs: int = setting(10, "Number of epochs. With few images, an epoch passes over them several times.", least=1)
    updates: int = setting(12, "Number of updates to aim for in an epoch: few images are used several times.", least=1)
    learning_rate: float = setting(
        0.05, "Peak learning rate of AdamW: one epoch of warm-up, then a cosine.", above=0, below=10
    )
    batch: int = setting(
        64,
        "Training images in an update: one pass of the text tower serves them all. If there are fewer, each comes in "
        "several views.",
        least=1,
    )
    image_size: int = setting(
        0, "Side of the network's input in pixels. 0: 256 for tiny, 640 for checkpoints.", least=0
    )
    tile: int = setting(
        0,
        "For small objects: also learn from slices of each photo with this side in pixels, those of `detect --slice`. "
        "0: whole photos only.",
        least=0,
    )
    tile_overlap: float = setting(0.2, "Share of a slice that the next one sees too. Needs --tile.", least=0, most=0.9)
    views: int = setting(
        0,
        "Cached views of each training image: the image itself and augmented copies. 0: 16 with at most ten images of "
        "a class, fewer with more, 1 with a hundred images or guide `own`.",
        least=0,
    )
    region_budget: tuple[int, int, int] = setting(
        (RegionBudget.in_box, RegionBudget.top, RegionBudget.random),
        "Anchors that are kept of a training image: inside the boxes of objects, with the highest original scores, and "
        "at random. With guide `own`, all are kept.",
    )
    precision: float = setting(
        0.0,
        "Choose each threshold for this precision at IoU 0.5 on the validation images. 0: for the best F1.",
        least=0,
        most=1,
    )
    nms_iou: float = setting(
        0.0,
        "Overlap above which the weaker of two boxes of a learned class is dropped. 0: choose 0.7, 0.6 or 0.5 by AP50 "
        "on the validation images.",
        least=0,
        most=NMS_IOU,
        why="the graph drops boxes that overlap by more",
    )
    boxes: Boxes = setting(
        "calibrated",
        "Draw the boxes of each class as its labels are drawn: edges move by shares of the box that the training "
        "images show. Or leave them as the frozen detector draws them.",
        choices=get_args(Boxes),
    )
    calibrate: bool = setting(
        False, "Fit a scale and shift of each class's logit, so that a score says how often a detection is right."
    )
    freeze_old: bool = setting(
        False, "With --from: keep the context of the classes that were learned before, and train only new ones."
    )
    seed: int = setting(0, "Seed of held-out images, initial context, order, views and random anchors.", least=0)

    def __post_init__(self) -> None:
        """Refuse values outside their limits."""
        for part in fields(self):
            _check(part, getattr(self, part.name))
        if self.prompts_per_class > 1 and not self.class_specific:
            raise RunError(
                "Several prompts for a class need class-specific context, since shared context is one for all. "
                f"Received: `prompts_per_class` {self.prompts_per_class}. Leave --prompts-per-class or "
                "--shared-context out."
            )
        if self.image_size % LARGEST_STRIDE:
            raise RunError(
                f"`image_size` must be a multiple of {LARGEST_STRIDE}, the largest stride. Received: {self.image_size}."
            )
        if len(self.region_budget) != 3 or min(self.region_budget) < 0 or not self.region_budget[0]:
            raise RunError(
                f"`region_budget` must be three counts, the first at least 1. Received: {self.region_budget}."
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON, for config.json."""
        plain = asdict(self) | {"region_budget": list(self.region_budget)}
        if not self.tile:  # as before there were tiles
            plain = {name: value for name, value in plain.items() if name not in ("tile", "tile_overlap")}
        return plain


def _check(part: "Field[Any]", value: Any) -> None:
    """Refuse a value outside the limits of its field."""
    choices, limits = part.metadata["choices"], part.metadata["limits"]
    if choices and value not in choices:
        raise RunError(f"`{part.name}` must be one of {', '.join(choices)}. Received: {value!r}.")
    least, most, above, below = (limits[name] for name in ("least", "most", "above", "below"))
    if all(limit is None for limit in limits.values()):
        return
    inside = (
        math.isfinite(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        why = f", because {part.metadata['why']}" if part.metadata["why"] else ""
        raise RunError(f"`{part.name}` must be {_in_words(least, most, above, below)}{why}. Received: {value}.")


def _in_words(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    if least is not None and most is not None:
        return f"from {least} to {most}"
    words = (("at least", least), ("at most", most), ("above", above), ("below", below))
    return " and ".join(f"{word} {limit}" for word, limit in words if limit is not None)
