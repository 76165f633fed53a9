"""What was learned: how far the class embeddings moved, and which tokens are nearest to the context vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower

N_NEAREST = 3  # neighbours that are listed
MAX_VECTORS = 400  # context vectors that are compared with all tokens: 20 million distances for CLIP's 49,408 tokens
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the tokenizer gives for an incomplete character
SAMPLE_STEP = 193  # every 193rd token (256 of CLIP's) is used to measure how far tokens are from one another


@dataclass(frozen=True)
class Near:
    """A neighbour.

    Attributes:
        name: The class name or the token.
        value: The cosine, -1 to 1 (classes), or the L2 distance (tokens).
    """

    name: str
    value: float


@dataclass(frozen=True)
class Movement:
    """How the embedding of a class moved.

    Attributes:
        name: The class name.
        cosine: Between the learned embedding and that of the plain name, -1 to 1.
        before: The original classes nearest to the plain name.
        after: The original classes nearest to the learned embedding.
    """

    name: str
    cosine: float
    before: tuple[Near, ...]
    after: tuple[Near, ...]


@dataclass(frozen=True)
class VectorTokens:
    """The tokens nearest to one context vector.

    Attributes:
        text: The class name or synonym that the vector belongs to; "" if all classes share it.
        position: The place of the vector in the context, from 1.
        nearest: The nearest tokens, nearest first.
    """

    text: str
    position: int
    nearest: tuple[Near, ...]


@dataclass(frozen=True)
class TokenDistances:
    """The tokens nearest to the context vectors.

    Attributes:
        vectors: One entry for each of the first `MAX_VECTORS` context vectors.
        n_vectors: The number of context vectors.
        between_tokens: The median L2 distance from a token of the tower to its nearest other token.
    """

    vectors: tuple[VectorTokens, ...]
    n_vectors: int
    between_tokens: float


def movements(
    names: Sequence[str], learned: np.ndarray, plain: np.ndarray, original_names: Sequence[str], original: np.ndarray
) -> tuple[Movement, ...]:
    """How the embedding of each class moved.

    Args:
        names: The learned classes.
        learned: (n_cls, n_prompts, 512) float32, unit rows, their learned embeddings.
        plain: (n_cls, n_prompts, 512) float32, unit rows, the embeddings of their plain names.
        original_names: The original classes.
        original: (n_original, n_prompts', 512) float32, unit rows, their embeddings.

    Returns:
        One entry for each class. `Movement.cosine` compares the first prompt, which is the name; neighbours are found
        by the best pair of prompts.
    """

    def nearest(rows: np.ndarray) -> tuple[Near, ...]:
        cosines = (original @ rows.T).max(axis=(1, 2))  # (n_original,)
        best = np.argsort(-cosines, kind="stable")[:N_NEAREST]
        return tuple(Near(original_names[k], float(cosines[k])) for k in best)

    return tuple(
        Movement(name, float(learned[i, 0] @ plain[i, 0]), nearest(plain[i]), nearest(learned[i]))
        for i, name in enumerate(names)
    )


@torch.no_grad()
def nearest_tokens(context: PromptContext) -> TokenDistances:
    """The tokens nearest to the context vectors, by L2 distance in the token space of the text tower.

    Source: CoOp (arXiv 2109.01134), `interpret_prompt.py`.
    """
    tower = context.tower
    if context.class_specific:
        places = [
            (text, i, j, position)
            for i, texts in enumerate(context.texts)
            for j, text in enumerate(texts)
            for position in range(context.ctx.shape[-2])
        ]
        vectors = torch.stack([context.ctx[i, j, position] for _, i, j, position in places[:MAX_VECTORS]])
    else:
        places = [("", 0, 0, position) for position in range(context.ctx.shape[-2])]
        vectors = context.ctx[:MAX_VECTORS]
    weight = tower.token_embedding.weight
    distances, tokens = torch.cdist(vectors, weight).topk(N_NEAREST, largest=False)  # (n, 3), (n, 3)
    sampled = torch.arange(0, len(weight), SAMPLE_STEP, device=weight.device)
    between = torch.cdist(weight[sampled], weight)  # (n_sampled, n_tokens)
    between[torch.arange(len(sampled)), sampled] = torch.inf  # not to itself
    nearest = [
        tuple(Near(_written(tower, token), distance) for token, distance in zip(*pair, strict=True))
        for pair in zip(tokens.tolist(), distances.tolist(), strict=True)
    ]
    found = [
        VectorTokens(text, position + 1, near)
        for (text, _, _, position), near in zip(places[:MAX_VECTORS], nearest, strict=True)
    ]
    return TokenDistances(tuple(found), len(places), float(between.amin(dim=1).median()))


def _written(tower: TextTower, token: int) -> str:
    """The text of a token. If the token does not end its word, a hyphen follows."""
    text: str = tower.tokenizer.decode([token])
    word = text.strip()
    if not word or REPLACEMENT in word or not word.isprintable():
        return "(unprintable)"
    return word if text.endswith(" ") or token in (tower.start_token, tower.end_token) else f"{word}-"
