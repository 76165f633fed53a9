"""Vocabularies that tests share, and the check that a refusal is one line."""

from collections.abc import Callable
from typing import Any

import numpy as np

from prompt_tune.errors import VocabularyError
from prompt_tune.vocabulary.vocabulary import Vocabulary

DETECTOR, TOWER, GUIDE = "d" * 64, "7" * 64, "9" * 64


def unit_rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 rows of unit L2 norm."""
    rows = np.random.default_rng(seed).standard_normal((*shape, 512))
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def learned(*names: str, n_prompts: int = 1, seed: int = 0, **fields: Any) -> Vocabulary:
    """A learned vocabulary with random embeddings."""
    defaults: dict[str, Any] = {"kind": "learned", "detector": DETECTOR, "text_tower": TOWER, "guide": GUIDE}
    return Vocabulary(names, unit_rows(len(names), n_prompts, seed=seed), **(defaults | fields))


def golden() -> Vocabulary:
    """A vocabulary whose bytes are the same on every machine: no random numbers, no rounding."""
    embeddings = np.zeros((2, 2, 512), np.float32)
    embeddings[0, 0, 0] = embeddings[0, 1, 1] = 1
    embeddings[1, :, 511] = -1
    return Vocabulary(
        ("lorry", "Käfer"),
        embeddings,
        thresholds=np.array([0.25, 0.5], np.float32),
        kind="learned",
        detector=DETECTOR,
        text_tower=TOWER,
        guide=GUIDE,
        provenance={"seed": 0, "metrics": {"ap50": 0.875}},
    )


def refusal_of(action: Callable[[], object]) -> str:
    """The text of the error, which is one line."""
    try:
        action()
    except VocabularyError as refusal:
        text = str(refusal)
    else:
        raise AssertionError("Nothing was refused.")
    assert text == text.strip() and len(text.splitlines()) == 1
    return text
