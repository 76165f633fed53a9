"""Continuing from an earlier run: its context is the start, and classes that are not trained again are kept."""

import logging
from collections.abc import Collection, Sequence
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
from prompt_tune.vocabulary.checks import check_made_for
from prompt_tune.vocabulary.vocabulary import Vocabulary, merge
from prompt_tune.wording import counted

SETTINGS = ("class_specific", "token_position", "prompts_per_class")  # how prompts are built
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier run of `fit`.

    Attributes:
        run: Its folder.
        context: Its context vectors.
        learned: Its learned vocabulary.
    """

    run: RunFolder
    context: PromptContext
    learned: Vocabulary

    @classmethod
    def load(cls, folder: Path, tower: TextTower) -> "Earlier":
        """Read a run.

        Raises:
            RunError: The run is incomplete.
            ModelError: It was made with another text tower.
            VocabularyError: One of its files is damaged.
        """
        run = RunFolder(folder)
        missing = [path.name for path in (run.prompts, run.learned, run.original) if not path.is_file()]
        if missing:
            raise RunError(
                f"{folder} is not a complete run of `fit`: it has no {', '.join(missing)}. Give another --from."
            )
        context, learned = load_context(run.prompts, tower), Vocabulary.load(run.learned)
        if {texts[0] for texts in context.classes} != set(learned.names):
            raise RunError(
                f"{run.prompts} and {run.learned} have different classes: one of them was changed. Give the files as "
                "`fit` wrote them."
            )
        return cls(run, context, learned)

    def check(self, detector: str, guide: str, guide_mode: GuideMode) -> None:
        """Refuse a run of another detector or guide, since its classes could not be used beside the new ones.

        Args:
            detector: Digest of the detector.
            guide: Digest of the original vocabulary.
            guide_mode: The guide mode of the new classes.

        Raises:
            RunError: One of them differs.
        """
        cure = "Continue with the same one, or start without --from."
        own_guide = self.learned.guide if self.learned.guide_mode == "original" else guide
        check_made_for(
            str(self.run.folder),
            {"detector": self.learned.detector, "guide": own_guide},
            {"detector": detector, "guide": guide},
            holder="this fit",
            cure=cure,
            error=RunError,
        )
        if self.learned.guide_mode != guide_mode:
            raise RunError(
                f"{self.run.folder} was learned with guide `{self.learned.guide_mode}`. Received: `{guide_mode}`. "
                f"{cure}"
            )

    def settings(self, config: FitConfig, given: Collection[str] = ()) -> FitConfig:
        """The settings with prompts built as in this run; a line names each setting that cannot be used.

        Image size and tiles are those of this run, unless others are given.

        Args:
            config: The settings.
            given: Names of the settings that the user chose, also where they equal the default.
        """
        was = {name: getattr(self.context, name) for name in (*SETTINGS, "initial_words")}
        was["context_length"] = self.context.n_ctx
        stored = self.learned.provenance.get("settings")
        stored = stored if isinstance(stored, dict) else {}
        image_size, tile, overlap = (stored.get(name) for name in ("image_size", "tile", "tile_overlap"))
        if not config.image_size and "image_size" not in given and isinstance(image_size, int):
            config = replace(config, image_size=image_size)
        if not config.tile and "tile" not in given and isinstance(tile, int) and isinstance(overlap, float):
            config = replace(config, tile=tile, tile_overlap=overlap)
        for name, value in was.items():
            asked = getattr(config, name)
            if asked != value and (name in given or asked != getattr(FitConfig, name)):
                logger.warning("`%s` is %r, as in %s; %r is not used.", name, value, self.run.folder, asked)
        return replace(config, **was)

    def with_synonyms(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The classes with these names, each with the synonyms that it was learned with."""
        known = {texts[0]: texts for texts in self.context.classes}
        return [known.get(name, (name,)) for name in names]

    def adopt(self, context: PromptContext, *, freeze: bool) -> list[bool]:
        """Make a context start from this run's.

        Args:
            context: The context to change.
            freeze: Keep the classes that both have as they are.

        Returns:
            For each class, whether it stays as it is.

        Raises:
            RunError: With `freeze`, nothing is left to learn, or a part cannot be frozen.
        """
        known = context.adopt(self.context)
        if not freeze:
            return [False] * len(known)
        if not context.class_specific:
            raise RunError(
                f"The context of {self.run.folder} is shared by all classes, so a part of it cannot be frozen. Leave "
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
                f"All classes of the data set are in {self.run.folder} already, so with --freeze-old nothing is left "
                "to learn. Leave it out to train them further."
            )
        return known

    def keep(self, context: PromptContext, frozen: Sequence[bool]) -> np.ndarray:
        """The embeddings of a context, with those of frozen classes exactly as in this run.

        The tower would change their last bits, because they depend on the other names in a batch.

        Returns:
            (n_cls, n_prompts, 512) float32, unit rows.
        """
        embeddings = context.embeddings()
        for i in np.flatnonzero(frozen):
            row = self.learned.embeddings[self.learned.names.index(context.classes[i][0])]  # (n_prompts', 512)
            embeddings[i] = row[np.arange(context.n_prompts) % len(context.texts[i])]
        return embeddings

    def keep_unfound(self, learned: Vocabulary, unfound: Sequence[str]) -> Vocabulary:
        """A vocabulary in which some classes keep the threshold, calibration, NMS IoU and box offsets of this run.

        Args:
            learned: The new vocabulary.
            unfound: Names that were never found in the validation images, so nothing could be chosen for them.
        """
        names = [name for name in unfound if name in self.learned.names]
        if not names:
            return learned
        logger.warning(
            "Thresholds are kept from %s for %s never found in the validation images: %s",
            self.run.folder,
            counted(len(names), "class"),
            ", ".join(names),
        )
        rows, old = ([part.names.index(name) for name in names] for part in (learned, self.learned))

        def kept(now: np.ndarray, was: np.ndarray) -> np.ndarray:
            changed = now.copy()
            changed[rows] = was[old]
            return changed

        calibrated, limited, moved = (
            any(getattr(part, name) is not None for part in (learned, self.learned))
            for name in ("calibration", "nms_iou", "box_offsets")
        )
        return replace(
            learned,
            thresholds=kept(learned.thresholds, self.learned.thresholds),
            calibration=kept(learned.calibration_rows, self.learned.calibration_rows) if calibrated else None,
            nms_iou=kept(learned.nms_iou_rows, self.learned.nms_iou_rows) if limited else None,
            box_offsets=kept(learned.box_offsets_rows, self.learned.box_offsets_rows) if moved else None,
        )

    def join(self, context: PromptContext, learned: Vocabulary) -> tuple[PromptContext, Vocabulary]:
        """The classes that were trained now, followed by the earlier ones that were not, which stay as they were.

        Shared context belongs to all classes, and a vocabulary that guides itself cannot be divided. In these cases the
        earlier classes stay in the earlier run's file, which can be loaded beside the new one.
        """
        rest = [names for names in self.context.classes if names[0] not in learned.names]
        if not rest:
            return context, learned
        if not context.class_specific or "own" in (learned.guide_mode, self.learned.guide_mode):
            logger.warning(
                "%d earlier classes are not in the new vocabulary. Load %s beside it to have them.",
                len(rest),
                self.run.learned,
            )
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
