"""What was learned, in words: how far class embeddings moved, and the tokens nearest to the context vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower

N_NEAREST = 3  # classes and tokens that are named
MAX_VECTORS = 400  # context vectors that are compared with all tokens: 20 M distances at CLIP's 49,408
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what the tokenizer gives for bytes that are no whole character
YARDSTICK_STEP = 193  # every 193rd token (256 of CLIP's) tells how far tokens are from one another


@dataclass(frozen=True)
class Near:
    """Something that is near: its name, and the cosine (of classes) or L2 distance (of tokens)."""

    name: str
    value: float


@dataclass(frozen=True)
class Movement:
    """How a class's embedding moved. cosine: of the learned embedding and that of the plain name, -1 to 1.

    before, after: the original classes nearest to the plain name and to the learned embedding, with their cosines.
    """

    name: str
    cosine: float
    before: tuple[Near, ...]
    after: tuple[Near, ...]


@dataclass(frozen=True)
class VectorTokens:
    """The tokens nearest to one context vector. text: the class name or synonym that it stands before; "" for all."""

    text: str
    position: int
    nearest: tuple[Near, ...]


@dataclass(frozen=True)
class TokenDistances:
    """Nearest tokens of context vectors (`MAX_VECTORS` at most, of `n_vectors`).

    between_tokens: the median L2 distance from a token of the tower to the one nearest to it.
    """

    vectors: tuple[VectorTokens, ...]
    n_vectors: int
    between_tokens: float


def movements(
    names: Sequence[str], learned: np.ndarray, plain: np.ndarray, original_names: Sequence[str], original: np.ndarray
) -> tuple[Movement, ...]:
    """How each class moved.

    Args:    learned, plain: (n_cls, n_prompts, 512) float32, unit rows, of `names`.
             original: (n_original, n_prompts', 512) float32, unit rows, of `original_names`.
    Returns: one a class. One with several prompts is as near as its nearest; its own cosine is that of its first, the
             name.
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
    """The tokens nearest to the context vectors in the text tower's token space, by L2 distance.

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
    sampled = torch.arange(0, len(weight), YARDSTICK_STEP, device=weight.device)
    between = torch.cdist(weight[sampled], weight)  # (n_sampled, n_tokens)
    between[torch.arange(len(sampled)), sampled] = torch.inf  # not itself
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
    """A token as it is written; one that a word goes on after ends in a hyphen."""
    text: str = tower.tokenizer.decode([token])
    word = text.strip()
    if not word or REPLACEMENT in word or not word.isprintable():
        return "(unprintable)"
    return word if text.endswith(" ") or token in (tower.start_token, tower.end_token) else f"{word}-"
