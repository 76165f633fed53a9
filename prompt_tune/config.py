"""The settings of a fit, in one place: the command line reads its defaults and its help from here."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from prompt_tune.contract import NMS_IOU, GuideMode
from prompt_tune.errors import RunError

TINY_IMAGE_SIZE, IMAGE_SIZE = 256, 640  # px: what `tiny`, and what YOLO-World's checkpoints were trained at
TokenPosition = Literal["end", "middle", "front"]  # of the class name: behind, within, or before the context


@dataclass(frozen=True)
class RegionBudget:
    """Anchors kept of a training image. Together they give the AP of all anchors; without the last two kinds, false
    alarms double."""

    in_box: int = 600  # in an object's box; where there are more, each object's best by overlap, in turn
    top: int = 50  # with the highest original scores: what looks like an object and is none of ours
    random: int = 64  # plain background


def setting(default: Any, reason: str) -> Any:
    """A field with its default and the sentence that `--help` shows."""
    return field(default=default, metadata={"help": reason})


@dataclass(frozen=True)
class FitConfig:
    """What decides the result of a fit, besides detector, tower, original vocabulary and data."""

    context_length: int = setting(4, "Context vectors beside each name; 16 find slightly more than 4, and take longer.")
    class_specific: bool = setting(True, "Own context for every class, or one that all classes share.")
    token_position: TokenPosition = setting("end", "Where the class name stands: behind, within or before the context.")
    prompts_per_class: int = setting(
        1, "Prompts learned side by side for each name and synonym; the best one counts. Class-specific context only."
    )
    initial_words: str = setting("", "Words that the context starts from, as many tokens as it is long; empty: random.")
    teacher_weight: float = setting(
        0.0, "Weight of the distance to what hand-written prompts give: more keeps the meaning of a known name."
    )
    guide: GuideMode = setting(
        "original", "What steers the neck: the original vocabulary, or in a pass of their own the learned classes."
    )
    epochs: int = setting(20, "Passes over the cached training images, or several for few of them (see updates).")
    updates: int = setting(30, "Updates in an epoch: fewer images are passed over several times to come near it.")
    learning_rate: float = setting(0.02, "Peak of AdamW's learning rate: one epoch of warm-up, then a cosine.")
    batch: int = setting(16, "Training images in an update.")
    image_size: int = setting(0, "Side of the network's input in pixels; 0: 256 for tiny, 640 for checkpoints.")
    views: int = setting(
        1, "Cached views of an image for training: itself and augmented copies; 4 help with few images."
    )
    region_budget: tuple[int, int, int] = setting(
        (RegionBudget.in_box, RegionBudget.top, RegionBudget.random),
        "Anchors kept of a training image: in an object's box, with the highest original scores, random. Guide own "
        "keeps all.",
    )
    precision: float = setting(
        0.0, "Precision at IoU 0.5 on the validation images that thresholds are chosen for; 0: the best F1."
    )
    nms_iou: float = setting(
        0.0,
        "Overlap above which the weaker of two boxes of a learned class goes; 0: of 0.7, 0.6 and 0.5 what gives the "
        "highest AP50 on the validation images.",
    )
    calibrate: bool = setting(
        False, "Fit a scale and shift of each class's logit, so that a score says how often a detection is right."
    )
    freeze_old: bool = setting(
        False, "With --from: classes that were learned before keep their context; only new ones are trained."
    )
    seed: int = setting(0, "Seed of held-out images, initial context, order, views and random anchors.")

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        lowest = {
            "context_length": 1,
            "prompts_per_class": 1,
            "epochs": 1,
            "batch": 1,
            "views": 1,
            "updates": 1,
            "image_size": 0,
            "seed": 0,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise RunError(f"`{name}` must be at least {least}. Received: {getattr(self, name)}.")
        if not 0 < self.learning_rate < 10:
            raise RunError(f"`learning_rate` must be above 0 and below 10. Received: {self.learning_rate}.")
        for name, allowed in (("token_position", get_args(TokenPosition)), ("guide", get_args(GuideMode))):
            if getattr(self, name) not in allowed:
                raise RunError(f"`{name}` must be one of {', '.join(allowed)}. Received: {getattr(self, name)!r}.")
        if self.prompts_per_class > 1 and not self.class_specific:
            raise RunError(
                "Several prompts a class need class-specific context, since shared context is one for all. Received: "
                f"`prompts_per_class` {self.prompts_per_class}. Leave --prompts-per-class or --shared-context out."
            )
        if not 0 <= self.teacher_weight < float("inf"):
            raise RunError(f"`teacher_weight` must be a number from 0 on. Received: {self.teacher_weight}.")
        if not 0 <= self.precision <= 1:
            raise RunError(f"`precision` must be from 0 to 1. Received: {self.precision}.")
        if not 0 <= self.nms_iou <= NMS_IOU:
            raise RunError(
                f"`nms_iou` must be from 0 to {NMS_IOU}, for the graph drops what overlaps by more. Received: "
                f"{self.nms_iou}."
            )
        if self.image_size % 32:
            raise RunError(f"`image_size` must be a multiple of 32, the largest stride. Received: {self.image_size}.")
        if len(self.region_budget) != 3 or min(self.region_budget) < 0 or not self.region_budget[0]:
            raise RunError(
                f"`region_budget` must be three counts, the first at least 1. Received: {self.region_budget}."
            )

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON, for config.json."""
        return asdict(self) | {"region_budget": list(self.region_budget)}


HELP = {f.name: f.metadata["help"] for f in fields(FitConfig)}
