"""Learned prompts (CoOp, arXiv 2109.01134): context vectors and class names in the text tower's token space."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prompt_tune.config import TokenPosition
from prompt_tune.errors import VocabularyError
from prompt_tune.models.text_tower import TextTower
from prompt_tune.vocabulary.names import check_names

SPREAD = 0.5  # several prompts with the same initial words start so far apart, in widths of the tower's token vectors
PART = 128  # prompts that go through the tower together; a step of many classes has about 64 to 100


class PromptContext(nn.Module):
    """Context vectors for a list of classes. Nothing else is trained.

    Attributes:
        ctx: (n_ctx, ctx_dim) shared by all classes, or (n_cls, n_prompts, n_ctx, ctx_dim) class-specific; float32.
        classes: n_cls tuples (name, synonym, ...).
        texts: The text of each prompt of each class: name and synonyms, repeated `prompts_per_class` times.
        n_prompts: The number of prompts of the class that has most.
        class_specific: Whether each class and prompt has context vectors of its own.
        token_position: Where the class name stands among the context vectors.
        prompts_per_class: The number of prompts for each name and synonym.
        initial_words: The words that the context vectors started from, or "".
    """

    def __init__(
        self,
        tower: TextTower,
        classes: Sequence[tuple[str, ...]],
        *,
        n_ctx: int = 4,
        class_specific: bool = True,
        token_position: TokenPosition = "end",
        prompts_per_class: int = 1,
        initial_words: str = "",
        seed: int = 0,
    ) -> None:
        """Draws the initial vectors, or takes them from words.

        Args:
            tower: The frozen tower; it is not registered as a part of this module.
            classes: n_cls tuples (name, synonym, ...).
            n_ctx: The number of context vectors, at least 1.
            class_specific: Whether each class and prompt gets context vectors of its own.
            token_position: Where the class name stands: after the context ("end"), in its middle, or before it
                ("front").
            prompts_per_class: The number of prompts for each name and synonym; above 1 only if class-specific. They
                start from different vectors, because equal ones would stay equal.
            initial_words: Words of n_ctx tokens, whose token vectors are the start. Empty draws the start from a normal
                distribution as wide as the tower's own token vectors.
            seed: The seed of all draws.

        Raises:
            VocabularyError: A name is empty or repeated, name and context have too many tokens for the window, the
                number of initial tokens is not `n_ctx`, or a setting is not one of those above.
        """
        super().__init__()
        check_names([names[0] for names in classes])
        if token_position not in get_args(TokenPosition):
            raise VocabularyError(
                f"The class token's position must be one of {', '.join(get_args(TokenPosition))}. "
                f"Received: {token_position!r}."
            )
        if prompts_per_class < 1 or (prompts_per_class > 1 and not class_specific):
            raise VocabularyError(
                "Prompts per class must be at least 1, and exactly 1 with shared context. "
                f"Received: {prompts_per_class}. Learn several with class-specific context."
            )
        self._tower = [tower]  # in a list, so that the frozen weights do not become parameters of this module
        self.classes = [tuple(names) for names in classes]
        self.texts = [names * prompts_per_class for names in self.classes]
        self.class_specific, self.initial_words = class_specific, initial_words
        self.token_position, self.prompts_per_class = token_position, prompts_per_class
        self.n_prompts = max(map(len, self.texts))
        self._lay_out(n_ctx)
        self.ctx = nn.Parameter(self._start(n_ctx, seed))

    @property
    def tower(self) -> TextTower:
        """The frozen text tower."""
        return self._tower[0]

    @property
    def n_ctx(self) -> int:
        """The number of context vectors in a prompt."""
        return int(self.ctx.shape[-2])

    def forward(self, classes: Tensor | None = None) -> Tensor:
        """Computes class embeddings of the learned prompts: [start | ctx | name | end] through the tower.

        With another `token_position`, the name stands in the middle or in front of the context. Many prompts go through
        the tower a part at a time, and what a part needs for its gradient is computed again for it: memory is bounded.

        Args:
            classes: (k,) int64, which classes; None computes all.

        Returns:
            (n_cls or k, n_prompts, 512) float32, unit L2 norm, prompts in the order of `texts`. A class with
            fewer prompts repeats its own. Differentiable in `ctx` alone.

        Source: CoOp (arXiv 2109.01134), section 3.1.
        """
        place = self._row if classes is None else self._row[classes.cpu()]  # (k, n_prompts)
        used, place = place.unique(return_inverse=True)
        parts = used.split(PART)
        if len(parts) > 1 and torch.is_grad_enabled():
            encoded = [checkpoint(self._encode, part, use_reentrant=False) for part in parts]
        else:
            encoded = [self._encode(part) for part in parts]
        embeddings: Tensor = torch.cat(encoded)[place.flatten()]  # (k * n_prompts, 512)
        return embeddings.unflatten(0, tuple(place.shape))  # (k, n_prompts, 512)

    def _encode(self, rows: Tensor) -> Tensor:
        """The embeddings (n, 512) of some prompts, by their rows."""
        end, at = self._end[rows], rows.to(self.ctx.device)
        if self.class_specific:
            ctx = self.ctx[self._owner[rows, 0], self._owner[rows, 1]]  # (n, n_ctx, ctx_dim)
        else:
            ctx = self.ctx.expand(len(rows), -1, -1)  # (n, n_ctx, ctx_dim)
        vectors = torch.cat([self._prefix[at], ctx, self._suffix[at]], dim=1)  # (n, 1 + n_ctx + longest, ctx_dim)
        if self.token_position != "end":
            vectors = vectors[torch.arange(len(rows), device=at.device)[:, None], self._order[at]]
        return self.tower.encode(vectors[:, : int(end.max()) + 1], end)

    @torch.no_grad()
    def embeddings(self) -> np.ndarray:
        """Computes `forward` as an array: (n_cls, n_prompts, 512) float32, unit L2 norm."""
        rows = self().cpu().numpy()
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    @torch.no_grad()
    def adopt(self, other: "PromptContext") -> list[bool]:
        """Takes over what another context learned: the shared vectors, or those of the classes that both have.

        Args:
            other: A context for the same tower.

        Returns:
            For each class, whether it has context vectors from `other`. A synonym that `other` lacks keeps its start.

        Raises:
            VocabularyError: The two differ in how their prompts are built.
        """
        for what in ("n_ctx", "class_specific", "token_position", "prompts_per_class"):
            if getattr(self, what) != getattr(other, what):
                raise VocabularyError(
                    f"The context to continue from has `{what}` {getattr(other, what)!r}, and this one has "
                    f"{getattr(self, what)!r}. Continue with the same."
                )
        if not self.class_specific:
            self.ctx.copy_(other.ctx)
            return [names in other.classes for names in self.classes]
        known = {names[0]: i for i, names in enumerate(other.classes)}
        for i, prompts in enumerate(self.texts):
            for j in range(self.n_prompts if self.classes[i][0] in known else 0):
                place = other.find(self.classes[i][0], prompts[j % len(prompts)], j // len(self.classes[i]))
                if place is not None:
                    self.ctx[i, j] = other.ctx[place]
        return [names[0] in known for names in self.classes]

    def find(self, name: str, text: str, copy: int = 0) -> tuple[int, int] | None:
        """Finds the context of a text: in the class of the given name, or else in the first class that has the text.

        Args:
            name: The name of a class.
            text: Its name or synonym.
            copy: Which of the prompts for the same text, modulo their number.

        Returns:
            Indices into the first two dimensions of class-specific `ctx`, or None if no class has the text.
        """
        found = [i for i, names in enumerate(self.classes) if text in names]
        if not found:
            return None
        i = next((i for i in found if self.classes[i][0] == name), found[0])
        return i, copy % self.prompts_per_class * len(self.classes[i]) + self.classes[i].index(text)

    def _start(self, n_ctx: int, seed: int) -> Tensor:
        """The initial context vectors, in the shape of `ctx`: one draw for each prompt of a text, shared by classes."""
        tower, generator = self.tower, torch.Generator().manual_seed(seed)
        width = float(tower.token_embedding.weight.std())
        draws = torch.randn(self.prompts_per_class, n_ctx, tower.ctx_dim, generator=generator).to(tower.device) * width
        if self.initial_words:
            tokens = tower.tokenize(self.initial_words)
            if len(tokens) != n_ctx:
                raise VocabularyError(
                    f"The initial words '{self.initial_words}' have {len(tokens)} tokens; the context length is "
                    f"{n_ctx}. Give --context-length {len(tokens)} or other words."
                )
            draws = tower.token_vectors(tokens) + SPREAD * torch.cat([torch.zeros_like(draws[:1]), draws[1:]])
        if not self.class_specific:
            return draws[0].clone()
        start = torch.empty(len(self.classes), self.n_prompts, n_ctx, tower.ctx_dim, device=tower.device)
        for i, names in enumerate(self.classes):
            for j in range(self.n_prompts):
                start[i, j] = draws[j // len(names) % self.prompts_per_class]
        return start

    def _lay_out(self, n_ctx: int) -> None:
        """Tokenises the names, and prepares the frozen vectors around the context and the order of all parts."""
        tower = self.tower
        if n_ctx < 1:
            raise VocabularyError(f"The context length must be at least 1. Received: {n_ctx}.")
        # one row for each class and prompt without padding; `_row` has the row of every prompt with padding
        texts = [(i, j, text) for i, prompts in enumerate(self.texts) for j, text in enumerate(prompts)]
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
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[self.token_position]  # context in front of the name
        order = []
        for row in tokens:  # positions in [start | ctx | name, end, padding]
            of_name = range(1 + n_ctx, n_ctx + len(row))
            rest = range(n_ctx + len(row), 1 + n_ctx + longest)
            order.append([0, *range(1, 1 + before), *of_name, *range(1 + before, 1 + n_ctx), *rest])
        self._order = torch.tensor(order, device=tower.device)  # (n_rows, 1 + n_ctx + longest)
        place = {(i, j): row for row, (i, j, _) in enumerate(texts)}
        self._owner = torch.tensor([[i, j] for i, j, _ in texts])  # (n_rows, 2)
        self._row = torch.tensor(
            [[place[i, j % len(prompts)] for j in range(self.n_prompts)] for i, prompts in enumerate(self.texts)]
        )  # (n_cls, n_prompts)
