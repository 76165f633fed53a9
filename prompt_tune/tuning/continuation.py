"""Going on from an earlier run: its context is the start, and classes that are not trained again are carried over."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prompt_tune.config import FitConfig
from prompt_tune.contract import GuideMode
from prompt_tune.errors import RunError
from prompt_tune.models.context import PromptContext
from prompt_tune.models.prompts_file import load_context
from prompt_tune.models.text_tower import TextTower
from prompt_tune.run import RunFolder
from prompt_tune.vocabulary.checks import short
from prompt_tune.vocabulary.vocabulary import Vocabulary, merge

SETTINGS = ("class_specific", "token_position", "prompts_per_class")  # how prompts are built: as they were
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier run of `fit`: its folder, its context and its learned vocabulary."""

    run: RunFolder
    context: PromptContext
    learned: Vocabulary

    @classmethod
    def load(cls, folder: Path, tower: TextTower) -> "Earlier":
        """Read a run.

        Raises:  RunError: it is not whole. ModelError: it was made with another text tower.
                 VocabularyError: a file of it is damaged.
        """
        run = RunFolder(folder)
        missing = [path.name for path in (run.prompts, run.learned, run.original) if not path.is_file()]
        if missing:
            raise RunError(f"{folder} is no whole run of `fit`: {', '.join(missing)} is missing. Give another --from.")
        context, learned = load_context(run.prompts, tower), Vocabulary.load(run.learned)
        if {texts[0] for texts in context.classes} != set(learned.names):
            raise RunError(
                f"{run.prompts} and {run.learned} have different classes: one was changed. Give the files as `fit` "
                "wrote them."
            )
        return cls(run, context, learned)

    def check(self, detector: str, guide: str, guide_mode: GuideMode) -> None:
        """Refuse a run of another detector or guide: its classes could not stand beside the new ones.

        Args:    detector, guide: digests of the detector and the original vocabulary.
        Raises:  RunError: one of them differs.
        """
        own_guide = self.learned.guide if self.learned.guide_mode == "original" else guide
        for what, was, here in (
            ("detector", short(self.learned.detector), short(detector)),
            ("guide", short(own_guide), short(guide)),
            ("guide", f"`{self.learned.guide_mode}`", f"`{guide_mode}`"),
        ):
            if was != here:
                raise RunError(
                    f"{self.run.folder} was learned with the {what} {was}; here it is {here}. Go on with the same one, "
                    "or start without --from."
                )

    def settings(self, config: FitConfig) -> FitConfig:
        """The configuration with the prompts built as they were; what changes by that is logged. The image size is
        that of then, unless another is given."""
        was = {name: getattr(self.context, name) for name in (*SETTINGS, "initial_words")}
        was["context_length"] = self.context.n_ctx
        stored = self.learned.provenance.get("settings")
        image_size = stored.get("image_size") if isinstance(stored, dict) else None
        if not config.image_size and isinstance(image_size, int):
            config = replace(config, image_size=image_size)
        for name, value in was.items():
            if getattr(config, name) not in (value, getattr(FitConfig, name)):
                logger.warning(
                    "`%s` is %r, as in %s; %r is not used.", name, value, self.run.folder, getattr(config, name)
                )
        return replace(config, **was)

    def with_synonyms(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The classes of these names, with the synonyms that they were learned with."""
        known = {texts[0]: texts for texts in self.context.classes}
        return [known.get(name, (name,)) for name in names]

    def adopt(self, context: PromptContext, *, freeze: bool) -> list[bool]:
        """Make a context start from this run's.

        Returns: for each class, whether it is to stay as it is.
        Raises:  RunError: with `freeze`, nothing is left to learn, or part of what is learned cannot be frozen.
        """
        known = context.adopt(self.context)
        if not freeze:
            return [False] * len(known)
        if not context.class_specific:
            raise RunError(
                f"The context of {self.run.folder} is shared by all classes: part of it cannot be frozen. Leave "
                "--freeze-old out."
            )
        was = {texts[0]: texts for texts in self.context.classes}
        for texts, old in zip(context.classes, known, strict=True):
            if old and texts != was[texts[0]]:
                raise RunError(
                    f"A frozen class keeps its synonyms, '{'; '.join(was[texts[0]])}'. Received: '{'; '.join(texts)}'. "
                    "Write it as it was, or leave --freeze-old out."
                )
        if all(known):
            raise RunError(
                f"All classes of the data set are in {self.run.folder}: with --freeze-old nothing is left to learn. "
                "Leave it out to go on with them."
            )
        return known

    def keep(self, context: PromptContext, frozen: Sequence[bool]) -> np.ndarray:
        """The embeddings of a context, and those of frozen classes to the bit as they were: in a batch of other names
        the tower's last bits differ.

        Returns: (n_cls, n_prompts, 512) float32, unit rows.
        """
        embeddings = context.embeddings()
        for i in np.flatnonzero(frozen):
            row = self.learned.embeddings[self.learned.names.index(context.classes[i][0])]  # (n_prompts', 512)
            embeddings[i] = row[np.arange(context.n_prompts) % len(context.texts[i])]
        return embeddings

    def keep_unfound(self, learned: Vocabulary, unfound: Sequence[str]) -> Vocabulary:
        """A vocabulary in which classes that nothing could be chosen for keep threshold, calibration and limit of
        overlap as they were.

        Args: unfound: names that the validation images never showed; those that this run has are kept, and logged.
        """
        names = [name for name in unfound if name in self.learned.names]
        if not names:
            return learned
        logger.warning(
            "The threshold stays as in %s for %d classes that were never found in the validation images: %s",
            self.run.folder,
            len(names),
            ", ".join(names),
        )
        rows, old = ([part.names.index(name) for name in names] for part in (learned, self.learned))

        def kept(now: np.ndarray, was: np.ndarray) -> np.ndarray:
            changed = now.copy()
            changed[rows] = was[old]
            return changed

        calibrated, limited = (
            any(getattr(part, name) is not None for part in (learned, self.learned))
            for name in ("calibration", "nms_iou")
        )
        return replace(
            learned,
            thresholds=kept(learned.thresholds, self.learned.thresholds),
            calibration=kept(learned.calibration_rows, self.learned.calibration_rows) if calibrated else None,
            nms_iou=kept(learned.nms_iou_rows, self.learned.nms_iou_rows) if limited else None,
        )

    def join(self, context: PromptContext, learned: Vocabulary) -> tuple[PromptContext, Vocabulary]:
        """What was trained now, and behind it the earlier classes that were not: their rows, thresholds and context
        are what they were.

        Shared context belongs to all classes alike, and a vocabulary that guides itself is one whole: neither is
        joined, and the earlier run's file stays what it is, to be loaded beside the new one.
        """
        rest = [names for names in self.context.classes if names[0] not in learned.names]
        if not rest:
            return context, learned
        if not context.class_specific or "own" in (learned.guide_mode, self.learned.guide_mode):
            logger.warning("%d earlier classes stay in %s alone: load it too.", len(rest), self.run.learned)
            return context, learned
        whole = PromptContext(
            context.tower,
            [*context.classes, *rest],
            n_ctx=context.n_ctx,
            token_position=context.token_position,
            prompts_per_class=context.prompts_per_class,
            initial_words=context.initial_words,
        )
        whole.adopt(self.context)
        whole.adopt(context)
        names = [texts[0] for texts in rest]
        both = merge([learned, self.learned.select(names)])
        carried = {"names": names, "from": self.learned.digest}
        return whole, replace(both, provenance=learned.provenance | {"carried": carried})
