"""Learned prompts (CoOp, arXiv 2109.01134): context vectors before the class names, in the text tower's token space."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.files import replacing
from prompt_tune.names import check_names
from prompt_tune.text import TextTower

FORMAT_VERSION = 1
METADATA_KEY = "prompt-tune"  # one key: safetensors writes several in random order
TOKEN_POSITION = "end"  # of the class name: behind the context
FIELDS = {"version", "classes", "class_specific", "token_position", "initial_words", "text_tower"}


class PromptContext(nn.Module):
    """Context vectors for a list of classes; the only thing that is trained.

    ctx: (n_ctx, ctx_dim) shared by all classes, or (n_cls, n_prompts, n_ctx, ctx_dim) class-specific; float32.
    """

    def __init__(
        self,
        tower: TextTower,
        classes: Sequence[tuple[str, ...]],
        *,
        n_ctx: int = 4,
        class_specific: bool = True,
        initial_words: str = "",
        seed: int = 0,
    ) -> None:
        """Draw or spell the initial vectors.

        Args:    tower: the frozen tower; it is not registered as a part of this module.
                 classes: n_cls tuples (name, synonym, ...). n_ctx: vectors in front of a name, at least 1.
                 class_specific: own vectors for each class and synonym.
                 initial_words: words whose token vectors are the start, n_ctx tokens of them; empty draws the start
                 from a normal distribution as wide as the tower's own token vectors.
                 seed: of that draw.
        Raises:  VocabularyError: a name is empty or repeated, name and context overrun the window, or the initial words
                 have another number of tokens than `n_ctx`.
        """
        super().__init__()
        check_names([names[0] for names in classes])
        self._tower = [tower]  # in a list, so that the frozen weights are no parameters of this module
        self.classes = [tuple(names) for names in classes]
        self.class_specific, self.initial_words = class_specific, initial_words
        self.n_prompts = max(map(len, self.classes))
        self._lay_out(n_ctx)
        if initial_words:
            tokens = tower.tokenize(initial_words)
            if len(tokens) != n_ctx:
                raise VocabularyError(
                    f"The initial words '{initial_words}' have {len(tokens)} tokens; the context length is {n_ctx}. "
                    f"Give --context-length {len(tokens)} or other words."
                )
            start = tower.token_vectors(tokens).clone()  # (n_ctx, ctx_dim)
        else:
            generator = torch.Generator().manual_seed(seed)
            width = float(tower.token_embedding.weight.std())
            start = torch.randn(n_ctx, tower.ctx_dim, generator=generator).to(tower.device) * width
        if class_specific:
            start = start.expand(len(self.classes), self.n_prompts, -1, -1).clone()
        self.ctx = nn.Parameter(start)

    @property
    def tower(self) -> TextTower:
        """The frozen text tower."""
        return self._tower[0]

    def _lay_out(self, n_ctx: int) -> None:
        """Tokenise the names: the frozen vectors in front of and behind the context, and where each prompt ends."""
        tower = self.tower
        if n_ctx < 1:
            raise VocabularyError(f"The context length must be at least 1. Received: {n_ctx}.")
        # one row a class and synonym that is there; `_row` says which of them a padded place repeats
        texts = [(i, j, text) for i, names in enumerate(self.classes) for j, text in enumerate(names)]
        tokens = []
        for _, _, text in texts:
            name = tower.tokenize(text)
            room = tower.context_length - 2 - len(name)
            if n_ctx > room:
                raise VocabularyError(
                    f"The context length must be at most {room} for '{text}' ({tower.context_length}-token window). "
                    f"Received: {n_ctx}."
                )
            tokens.append([*name, tower.end_token])
        longest = max(map(len, tokens))
        self._suffix = torch.stack(
            [tower.token_vectors(row + [0] * (longest - len(row))) for row in tokens]
        )  # (n_rows, longest, ctx_dim)
        self._prefix = tower.token_vectors([tower.start_token]).expand(len(tokens), 1, -1)  # (n_rows, 1, ctx_dim)
        self._end = torch.tensor([n_ctx + len(row) for row in tokens])  # (n_rows,)
        place = {(i, j): row for row, (i, j, _) in enumerate(texts)}
        self._owner = torch.tensor([[i, j] for i, j, _ in texts])  # (n_rows, 2)
        self._row = torch.tensor(
            [[place[i, j % len(names)] for j in range(self.n_prompts)] for i, names in enumerate(self.classes)]
        )  # (n_cls, n_prompts)

    def forward(self) -> Tensor:
        """Class embeddings of the learned prompts: [start | ctx | name | end] through the tower.

        Returns: (n_cls, n_prompts, 512) float32, unit L2 norm, classes and synonyms in the order given; a class with
                 fewer synonyms repeats its own. Differentiable in `ctx` alone.
        Source:  CoOp (arXiv 2109.01134), section 3.1; class token at the end.
        """
        if self.class_specific:
            ctx = self.ctx[self._owner[:, 0], self._owner[:, 1]]  # (n_rows, n_ctx, ctx_dim)
        else:
            ctx = self.ctx.expand(len(self._suffix), -1, -1)  # (n_rows, n_ctx, ctx_dim)
        vectors = torch.cat([self._prefix, ctx, self._suffix], dim=1)  # (n_rows, 1 + n_ctx + longest, ctx_dim)
        embeddings: Tensor = self.tower.encode(vectors, self._end)[self._row.flatten()]  # (n_cls * n_prompts, 512)
        return embeddings.unflatten(0, tuple(self._row.shape))  # (n_cls, n_prompts, 512)

    @torch.no_grad()
    def embeddings(self) -> np.ndarray:
        """`forward` as an array: (n_cls, n_prompts, 512) float32, unit L2 norm."""
        rows = self().cpu().numpy()
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def save(self, path: Path) -> None:
        """Write `prompts.safetensors`: the context vectors, and all that is needed to embed further names with them."""
        from safetensors.numpy import save_file

        fields = {
            "version": FORMAT_VERSION,
            "classes": self.classes,
            "class_specific": self.class_specific,
            "token_position": TOKEN_POSITION,
            "initial_words": self.initial_words,
            "text_tower": self.tower.digest,
        }
        with replacing(path) as temporary:
            save_file(
                {"ctx": np.ascontiguousarray(self.ctx.detach().cpu().numpy())},
                temporary,
                metadata={METADATA_KEY: json.dumps(fields, sort_keys=True)},
            )


def load_context(path: Path, tower: TextTower, classes: Sequence[tuple[str, ...]] | None = None) -> PromptContext:
    """The context of a run, for its own classes or for others.

    Args:    path: prompts.safetensors of a run. tower: the tower it was learned with.
             classes: None for the run's own. Others may be any where the context is shared; class-specific context
             belongs to the names that it was learned for.
    Returns: the context vectors in front of these classes.
    Raises:  VocabularyError: the file is missing, damaged or of another version, or a class has no context in it.
             ModelError: the tower is not the one it was learned with.
    """
    fields, ctx = _read(path, tower)
    trained = [tuple(names) for names in fields["classes"]]
    chosen = trained if classes is None else [tuple(names) for names in classes]
    context = PromptContext(tower, chosen, n_ctx=ctx.shape[-2], class_specific=fields["class_specific"])
    context.initial_words = fields["initial_words"]
    with torch.no_grad():
        if fields["class_specific"] and chosen != trained:
            for i, names in enumerate(chosen):
                for j, text in enumerate(names):
                    context.ctx[i, j] = ctx[_place(trained, names[0], text, path)]
        else:
            context.ctx.copy_(ctx)
    return context


def embed_with_prompts(path: Path, tower: TextTower, classes: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Embeddings of classes behind the learned context of a run.

    Args, Raises: as `load_context`.
    Returns: (n_cls, n_prompts, 512) float32, unit L2 norm.
    """
    return load_context(path, tower, classes).embeddings()


def _place(trained: Sequence[tuple[str, ...]], name: str, text: str, path: Path) -> tuple[int, int]:
    """Class and prompt of the context that was learned for a text: in the class of that name, else in the first class
    that has the text."""
    found = [(i, names.index(text)) for i, names in enumerate(trained) if text in names]
    if not found:
        learned = ", ".join(repr(text) for names in trained for text in names)
        raise VocabularyError(
            f"{path} has class-specific context for {learned}, and none for {text!r}. Name only these, or learn shared "
            "context with `fit --shared-context`."
        )
    return next((place for place in found if trained[place[0]][0] == name), found[0])


def _read(path: Path, tower: TextTower) -> tuple[dict[str, Any], Tensor]:
    """Metadata and context vectors of a prompts file, checked, also against the tower."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            ctx = file.get_tensor("ctx") if list(file.keys()) == ["ctx"] else None
    except (OSError, SafetensorError, ValueError) as error:
        raise VocabularyError(
            f"{path} cannot be read as a prompts file: {error}. Give prompts.safetensors of a run."
        ) from error
    if ctx is None or not isinstance(fields, dict) or not _is_valid(fields):
        raise VocabularyError(
            f"{path} is not a prompts file of version {FORMAT_VERSION} (one tensor `ctx`, metadata {sorted(FIELDS)}). "
            "Give prompts.safetensors of a run made with this version."
        )
    if fields["text_tower"] != tower.digest:
        raise ModelError(
            f"{path} was learned with the text tower {fields['text_tower'][:12]}, and '{tower.spec}' is "
            f"{tower.digest[:12]}. Give the tower of the run."
        )
    n_prompts = max(map(len, fields["classes"]))
    lead = (len(fields["classes"]), n_prompts) if fields["class_specific"] else ()
    right = ctx.ndim == len(lead) + 2 and tuple(ctx.shape[:-2]) == lead and ctx.shape[-1] == tower.ctx_dim
    if not right or ctx.dtype != torch.float32 or not bool(ctx.isfinite().all()):
        raise VocabularyError(
            f"{path}: `ctx` must be finite float32 {(*lead, 'n_ctx', tower.ctx_dim)}. Received: {ctx.dtype} "
            f"{tuple(ctx.shape)}. Give the file as `fit` wrote it."
        )
    return fields, ctx


def _is_valid(fields: dict[str, Any]) -> bool:
    """Whether a prompts file's metadata is of this version and of the right types."""
    if set(fields) != FIELDS or fields["version"] != FORMAT_VERSION or fields["token_position"] != TOKEN_POSITION:
        return False
    classes = fields["classes"]
    return (
        isinstance(classes, list)
        and bool(classes)
        and all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in classes)
        and isinstance(fields["class_specific"], bool)
        and all(isinstance(fields[key], str) for key in ("initial_words", "text_tower"))
    )
