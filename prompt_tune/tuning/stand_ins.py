"""Negatives that need no image: other classes' embeddings in the place of regions that show those classes.

A prompt that is learned on photos of its own class has never seen what it is not. In the contrastive head, a region
that shows a class lies along the embedding of that class. So each known class gives one stand-in for its regions: its
embedding, at the length at which the class would score `SELF_SCORE` there.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tune.datasets.replay import name_pattern
from prompt_tune.models.world import World
from prompt_tune.tuning.loss import ClassSample
from prompt_tune.vocabulary.vocabulary import Vocabulary

SELF_LOGIT = 1.0  # what a class scores on its own stand-in: 0.73


class StandIns:
    """The stand-ins of vocabularies, for learned classes."""

    def __init__(self, world: World, vocabularies: Sequence[Vocabulary], classes: Sequence[tuple[str, ...]]) -> None:
        """Prepare; a class of a vocabulary that a learned class is named after is none of its negatives.

        Args:
            world: The frozen detector.
            vocabularies: Those whose classes are the negatives.
            classes: The learned classes, (name, synonym, ...).
        """
        names = [name for vocabulary in vocabularies for name in vocabulary.names for _ in vocabulary.embeddings[0]]
        rows = np.concatenate([vocabulary.embeddings.reshape(-1, 512) for vocabulary in vocabularies])
        self._rows = torch.tensor(rows, device=world.device)  # (m, 512)
        patterns = [name_pattern(prompts) for prompts in classes]
        others = np.array([[pattern.search(name) is None for name in names] for pattern in patterns], np.float32)
        hidden = [part.is_background.repeat(part.n_prompts) for part in vocabularies]  # no class, so no object to show
        others *= ~np.concatenate(hidden)
        ends = np.cumsum([vocabulary.embeddings[..., 0].size for vocabulary in vocabularies])[:-1]
        parts = [part / max(1.0, part.sum()) for part in np.split(others, ends, axis=1)]  # each counts fully
        self._weights = torch.tensor(np.concatenate(parts, axis=1), device=world.device)  # (n_cls, m)
        self._shift = world.head.shift.to(world.device)  # (n_levels, 1)

    def loss(self, embeddings: Tensor, sample: ClassSample | None = None) -> Tensor:
        """How much learned classes score on the stand-ins.

        Args:
            embeddings: (n_cls, n_prompts, 512) float32, unit rows; with a sample, of its classes alone.
            sample: The classes of the embeddings; None if they are all classes.

        Returns:
            A scalar, at least 0: softplus of the logits, mean over levels, learned classes and the stand-ins of a
            vocabulary, summed over vocabularies.
        """
        cosines = (embeddings @ self._rows.T).amax(1)  # (n_cls, m)
        logits = (SELF_LOGIT - self._shift[..., None]) * cosines + self._shift[..., None]  # (n_levels, n_cls, m)
        weights = self._weights if sample is None else self._weights[sample.classes] * sample.weights[:, None]
        return (F.softplus(logits).mean(0) * weights).sum()
