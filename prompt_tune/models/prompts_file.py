"""`prompts.safetensors` of a run: the context vectors, and what is needed to embed further names with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from prompt_tune.config import TokenPosition
from prompt_tune.contract import GuideMode
from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.files import read_tensors, replacing, tensor_bytes
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import TextTower
from prompt_tune.vocabulary.checks import check_made_for, listing
from prompt_tune.vocabulary.names import kept_names

FORMAT_VERSION = 2
SETTINGS = ("class_specific", "token_position", "prompts_per_class", "initial_words")
FIELDS = {"version", "classes", "text_tower", "guide_mode", *SETTINGS}


def save_context(context: PromptContext, path: Path, guide_mode: GuideMode = "original") -> None:
    """Write `prompts.safetensors`, whole or not at all. The same context gives the same bytes.

    Args:
        context: What was learned.
        path: The file to write.
        guide_mode: What steered the neck while the context was learned.
    """
    fields = {
        "version": FORMAT_VERSION,
        "classes": context.classes,
        "text_tower": context.tower.digest,
        "guide_mode": guide_mode,
        **{name: getattr(context, name) for name in SETTINGS},
    }
    with replacing(path) as temporary:
        temporary.write_bytes(tensor_bytes({"ctx": context.ctx.detach().cpu().numpy()}, fields))


def load_context(path: Path, tower: TextTower, classes: Sequence[tuple[str, ...]] | None = None) -> PromptContext:
    """The context of a run, for its own classes or for others.

    Args:
        path: prompts.safetensors of a run.
        tower: The text tower that the context was learned with.
        classes: By default, those of the run. Shared context fits any classes; class-specific context fits only the
            names that it was learned for.

    Returns:
        The context vectors in front of these classes.

    Raises:
        VocabularyError: The file is missing, damaged or of another version, or has no context for a class.
        ModelError: The context was learned with another text tower.
    """
    fields, ctx = _read(path, tower)
    settings = {name: fields[name] for name in SETTINGS}
    trained = PromptContext(
        tower, [tuple(kept_names(names)) for names in fields["classes"]], n_ctx=ctx.shape[-2], **settings
    )
    with torch.no_grad():
        trained.ctx.copy_(ctx)
    if classes is None or list(classes) == trained.classes:
        return trained
    context = PromptContext(tower, classes, n_ctx=ctx.shape[-2], **settings)
    with torch.no_grad():
        if not context.class_specific:
            context.ctx.copy_(ctx)
            return context
        for i, prompts in enumerate(context.texts):
            for j in range(context.n_prompts):
                names, text = context.classes[i], prompts[j % len(prompts)]
                context.ctx[i, j] = ctx[_place(trained, names[0], text, j // len(names), path)]
    return context


def embed_with_prompts(path: Path, tower: TextTower, classes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Embeddings of classes with the learned context of a run.

    Args:
        path: See `load_context`.
        tower: See `load_context`.
        classes: See `load_context`.

    Returns:
        (n_cls, n_prompts, 512) float32, unit L2 norm.

    Raises:
        VocabularyError: See `load_context`.
        ModelError: See `load_context`.
    """
    return load_context(path, tower, classes).embeddings()


def read_guide_mode(path: Path, tower: TextTower) -> GuideMode:
    """What steered the neck while the context of a run was learned.

    Args:
        path: See `load_context`.
        tower: See `load_context`.

    Raises:
        VocabularyError: See `load_context`.
        ModelError: See `load_context`.
    """
    mode: GuideMode = _read(path, tower)[0]["guide_mode"]
    return mode


def _place(trained: PromptContext, name: str, text: str, copy: int, path: Path) -> tuple[int, int]:
    """The place of a prompt in the trained context, see `PromptContext.find`; `path` is for the error."""
    place = trained.find(name, text, copy)
    if place is None:
        learned = listing([known for names in trained.classes for known in names])
        raise VocabularyError(
            f"{path} has class-specific context for {learned}, but not for {text!r}. Name only these, learn context "
            "for any name with `fit --shared-context`, or leave --prompts out for a plain class."
        )
    return place


def _read(path: Path, tower: TextTower) -> tuple[dict[str, Any], Tensor]:
    """Metadata and context vectors of a prompts file, after all checks."""

    def check(fields: dict[str, Any], tensors: set[str]) -> None:
        if tensors != {"ctx"} or not _is_valid(fields):
            raise VocabularyError(
                f"{path} is not a prompts file of version {FORMAT_VERSION} (one tensor `ctx`, metadata "
                f"{sorted(FIELDS)}). Give prompts.safetensors of a run made with this version."
            )

    try:
        fields, tensors = read_tensors(path, check)
    except (OSError, ValueError) as error:
        raise VocabularyError(
            f"{path} cannot be read as a prompts file: {error}. Give prompts.safetensors of a run."
        ) from error
    ctx = torch.from_numpy(tensors["ctx"])
    check_made_for(
        str(path),
        {"text tower": fields["text_tower"]},
        {"text tower": tower.digest},
        holder=f"'{tower.spec}'",
        cure="Give the tower of the run.",
        error=ModelError,
    )
    n_prompts = max(map(len, fields["classes"])) * fields["prompts_per_class"]
    lead = (len(fields["classes"]), n_prompts) if fields["class_specific"] else ()
    right = ctx.ndim == len(lead) + 2 and tuple(ctx.shape[:-2]) == lead and ctx.shape[-1] == tower.ctx_dim
    if not right or not bool(ctx.isfinite().all()):
        raise VocabularyError(
            f"{path}: `ctx` must be finite float32 {(*lead, 'n_ctx', tower.ctx_dim)}. Received: {ctx.dtype} "
            f"{tuple(ctx.shape)}. Give prompts.safetensors of a run."
        )
    return fields, ctx


def _is_valid(fields: dict[str, Any]) -> bool:
    """Whether the metadata has this version and the right types."""
    if set(fields) != FIELDS or type(fields["version"]) is not int or fields["version"] != FORMAT_VERSION:
        return False
    classes, copies = fields["classes"], fields["prompts_per_class"]
    return (
        isinstance(classes, list)
        and bool(classes)
        and all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in classes)
        and isinstance(fields["class_specific"], bool)
        and fields["token_position"] in get_args(TokenPosition)
        and fields["guide_mode"] in get_args(GuideMode)
        and type(copies) is int
        and (copies >= 1 if fields["class_specific"] else copies == 1)  # shared context is one for all
        and isinstance(fields["initial_words"], str)
        and isinstance(fields["text_tower"], str)
        and bool(fields["text_tower"])
    )
