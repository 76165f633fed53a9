"""Going on from an earlier run: its context is the start, and classes that are not trained again are carried over."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prompt_tune.config import FitConfig
from prompt_tune.context import PromptContext
from prompt_tune.errors import RunError
from prompt_tune.prompts_file import load_context
from prompt_tune.run import RunFolder
from prompt_tune.text import TextTower
from prompt_tune.vocabulary import Vocabulary, merge, short

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
        return cls(run, load_context(run.prompts, tower), Vocabulary.load(run.learned))

    def check(self, detector: str, guide: str) -> None:
        """Refuse a run of another detector or guide: its classes could not stand beside the new ones.

        Args:    detector, guide: digests.
        Raises:  RunError: one of them differs.
        """
        own_guide = self.learned.guide if self.learned.guide_mode == "original" else guide
        for what, was, here in (("detector", self.learned.detector, detector), ("guide", own_guide, guide)):
            if was != here:
                raise RunError(
                    f"{self.run.folder} was learned with the {what} {short(was)}; here it is {short(here)}. Go on with "
                    "the same one, or start without --from."
                )

    def settings(self, config: FitConfig) -> FitConfig:
        """The configuration with the prompts built as they were; what changes by that is logged."""
        was = {name: getattr(self.context, name) for name in (*SETTINGS, "initial_words")}
        was["context_length"] = self.context.n_ctx
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
        both = merge([learned, self.learned.select([names[0] for names in rest])])
        return whole, replace(both, provenance=learned.provenance)
