"""What class names are worth without learning: alone, and in the best hand-written sentence. Light: no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prompt_tune.errors import VocabularyError
from prompt_tune.evaluation.metrics import Evaluation, Metrics

if TYPE_CHECKING:
    from prompt_tune.models.text_tower import TextTower

PLAIN = "{}"  # the template of the name alone
IN_FIT = "on the validation images of its fit"  # where `fit` chose the template that it recorded
_DIGITS = 6  # of the figures in a file


@dataclass(frozen=True)
class Baseline:
    """The detection of classes by their names, without learning. No own NMS IoU: as `vocab build` makes them.

    Attributes:
        template: The sentence, with `{}` for the name; "{}" is the name alone.
        chosen: How the sentence was chosen, in words: "the best of 7 templates on these images". Empty for the name.
        metrics: Means over the classes. From a file, only `ap` and `ap50` are known; the others are nan.
        class_ap50: AP50 by class name, nan for a class without an object. From a file, empty.
    """

    template: str
    chosen: str
    metrics: Metrics
    class_ap50: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, template: str, chosen: str, evaluation: Evaluation, rows: Mapping[int, str]) -> "Baseline":
        """From COCO's tables; `rows` has the class names by class number."""
        ap50 = evaluation.curves.mean(1)
        return cls(template, chosen, evaluation.metrics(list(rows)), {rows[k]: float(ap50[k]) for k in rows})

    @property
    def label(self) -> str:
        """What it is, in one or two words."""
        return "plain name" if self.template == PLAIN else "best template"

    def to_record(self) -> dict[str, Any]:
        """What the provenance of a vocabulary keeps."""
        numbers = {name: round(getattr(self.metrics, name), _DIGITS) for name in ("ap", "ap50")}
        return {"template": self.template, "chosen": self.chosen} | numbers

    def to_json(self) -> dict[str, Any]:
        """Everything, for `val --json`."""
        return {"template": self.template, "chosen": self.chosen, **asdict(self.metrics), "class_ap50": self.class_ap50}


def recorded_baselines(provenance: Mapping[str, Any]) -> tuple[Baseline, ...]:
    """The baselines that `fit` has put into a provenance; none if it has no whole record."""
    found = provenance.get("unlearned")
    if not isinstance(found, list):
        return ()
    unknown = Metrics(*[np.nan] * len(fields(Metrics)))
    baselines = []
    for part in found:
        if not isinstance(part, dict) or not isinstance(part.get("template"), str):
            return ()
        ap, ap50 = part.get("ap"), part.get("ap50")
        if not isinstance(ap, float | int) or not isinstance(ap50, float | int):
            return ()
        figures = replace(unknown, ap=float(ap), ap50=float(ap50))
        baselines.append(Baseline(part["template"], str(part.get("chosen", "")), figures))
    return tuple(baselines)


def name_embeddings(tower: "TextTower", texts: Sequence[tuple[str, ...]], template: str) -> np.ndarray | None:
    """Embeddings of names in a sentence.

    Args:
        tower: The text tower.
        texts: (name, synonym, ...) for each class.
        template: The sentence.

    Returns:
        (n_cls, n_prompts, 512) float32, unit L2 norm; None if a name in the sentence is too long for the tower.
    """
    from prompt_tune.models.text_tower import template_embeddings

    try:
        return tower.embed_classes(texts) if template == PLAIN else template_embeddings(tower, texts, [template])
    except VocabularyError:
        return None


def best(measured: Iterable[Baseline]) -> Baseline | None:
    """The one with the highest AP50, and of equal ones the first."""
    return max(measured, key=lambda part: np.nan_to_num(part.metrics.ap50), default=None)


def before_and_after(baselines: Sequence[Baseline], ap50: float) -> str:
    """AP50 before and after learning in words, without a full stop: "plain name 0.013, learned 0.969"."""
    parts = [
        f"{part.label} {part.metrics.ap50:.3f}" + (f" ('{part.template}', {part.chosen})" if part.chosen else "")
        for part in baselines
    ]
    return ", ".join([*parts, f"learned {ap50:.3f}"])
