"""The settings of a fit, in one place: the command line reads its defaults and its help from here."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prompt_tune.errors import RunError

TINY_IMAGE_SIZE, IMAGE_SIZE = 256, 640  # px: what `tiny`, and what YOLO-World's checkpoints were trained at


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

    context_length: int = setting(4, "Context vectors in front of each name; 1 to 8 do alike when class-specific.")
    class_specific: bool = setting(True, "Own context for every class, or one that all classes share.")
    initial_words: str = setting("", "Words that the context starts from, as many tokens as it is long; empty: random.")
    epochs: int = setting(30, "Passes over the cached training images.")
    learning_rate: float = setting(0.02, "Peak of AdamW's learning rate: one epoch of warm-up, then a cosine.")
    batch: int = setting(16, "Training images in an update.")
    image_size: int = setting(0, "Side of the network's input in pixels; 0: 256 for tiny, 640 for checkpoints.")
    views: int = setting(1, "Cached views of an image for training: itself and augmented copies; 4 help at 20 images.")
    region_budget: tuple[int, int, int] = setting(
        (RegionBudget.in_box, RegionBudget.top, RegionBudget.random),
        "Anchors kept of a training image: in an object's box, with the highest original scores, random.",
    )
    precision: float = setting(
        0.0, "Precision at IoU 0.5 on the validation images that thresholds are chosen for; 0: the best F1."
    )
    calibrate: bool = setting(
        False, "Fit a scale and shift of each class's logit, so that a score says how often a detection is right."
    )
    seed: int = setting(0, "Seed of held-out images, initial context, order, views and random anchors.")

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        lowest = {"context_length": 1, "epochs": 1, "batch": 1, "views": 1, "image_size": 0, "seed": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise RunError(f"`{name}` must be at least {least}. Received: {getattr(self, name)}.")
        if not 0 < self.learning_rate < 10:
            raise RunError(f"`learning_rate` must be above 0 and below 10. Received: {self.learning_rate}.")
        if not 0 <= self.precision <= 1:
            raise RunError(f"`precision` must be from 0 to 1. Received: {self.precision}.")
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
