"""What class names mean to the text tower when people write the prompt: averaged hand-written templates."""

from collections.abc import Sequence

import numpy as np

from prompt_tune.names import read_templates
from prompt_tune.text import TextTower


def template_embeddings(
    tower: TextTower, texts: Sequence[Sequence[str]], templates: Sequence[str] | None = None
) -> np.ndarray:
    """Embeddings of names in hand-written sentences, averaged over the sentences.

    Args:    texts: (name, synonym, ...) for each class. templates: sentences with `{}` for the name; None takes those
             of prompts/templates.txt.
    Returns: (n_cls, n_prompts, 512) float32, unit L2 norm; a class with fewer texts repeats its own.
    Raises:  VocabularyError: a sentence overruns the tower's window.
    Source:  CLIP (arXiv 2103.00020), section 3.1.4: prompt ensembling in the embedding space.
    """
    templates = read_templates() if templates is None else templates
    n_prompts = max(map(len, texts))
    rows = [names[j % len(names)] for names in texts for j in range(n_prompts)]
    unique = list(dict.fromkeys(rows))
    sentences = tower.embed([template.replace("{}", text) for text in unique for template in templates])
    mean = sentences.reshape(len(unique), len(templates), -1).mean(axis=1)  # (n_unique, 512)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    place = [unique.index(text) for text in rows]
    return mean[place].reshape(len(texts), n_prompts, -1)  # (n_cls, n_prompts, 512)
