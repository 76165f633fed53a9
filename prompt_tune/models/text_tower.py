"""The frozen CLIP text tower (open_clip): from tokens, or from context vectors and tokens, to 512-d embeddings."""

import hashlib
import json
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import ModelError, VocabularyError
from prompt_tune.privacy import quiet_imports
from prompt_tune.vocabulary.names import check_names, read_templates

DEFAULT_TOWER = "ViT-B-32-quickgelu:openai"  # YOLO-World's own: OpenAI's ViT-B/32 with its quick-GELU
LOCAL_PREFIX = "local-dir:"
BATCH = 64  # texts per forward pass
PROBE_SECONDS = 5.0  # the hub's client itself tries for 50 s
REASON_CHARACTERS = 300  # limit for another library's error text: open_clip's lists all models that it knows


class TextTower:
    """A frozen CLIP text encoder. Load one with `TextTower.load`.

    Attributes:
        spec: What it was loaded from.
        digest: SHA-256 of its parameters, 64 hexadecimal digits.
        ctx_dim: The width of its token space.
        context_length: The number of tokens in its window, including start and end.
        device: Where it runs.
    """

    def __init__(self, model: nn.Module, tokenizer: object, spec: str, device: str = "cpu") -> None:
        """Freezes the text side of an open_clip model.

        Args:
            model: The model, which is changed in place.
            tokenizer: Its tokenizer.
            spec: What it was loaded from, for error texts.
            device: A torch device.

        Raises:
            ModelError: It is not a causal CLIP tower with 512-d embeddings and CLIP's tokenizer.
        """
        from open_clip.tokenizer import SimpleTokenizer

        if not isinstance(tokenizer, SimpleTokenizer):
            raise ModelError(
                f"Text tower '{spec}' uses {type(tokenizer).__name__}; YOLO-World's towers use CLIP's byte-pair "
                f"tokenizer. Use one that does, such as {DEFAULT_TOWER}."
            )
        model.visual = nn.Identity()  # only the text side is used; the image side may be large
        text: Any = getattr(model, "text", model)  # CustomTextCLIP keeps the tower in `text`, CLIP in itself
        pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
        if pool != "argmax" or text.attn_mask is None or getattr(text, "cls_emb", None) is not None:
            raise ModelError(
                f"Text tower '{spec}' is not causal, or does not read its embedding at the end-of-text token; "
                f"YOLO-World's towers do. Use a CLIP tower such as {DEFAULT_TOWER}."
            )
        text.float().eval().requires_grad_(False).to(device)
        self.spec, self.device, self.tokenizer = spec, device, tokenizer
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.attn_mask = text.attn_mask
        self.ctx_dim = int(self.token_embedding.weight.shape[1])
        self.context_length = int(self.positional_embedding.shape[0])
        embed_dim = self.encode(self.token_vectors([0, 0])[None], torch.tensor([1])).shape[1]
        if embed_dim != EMBED_DIM:
            raise ModelError(
                f"Text tower '{spec}' makes {embed_dim}-d embeddings; YOLO-World takes {EMBED_DIM}. "
                f"Use a {EMBED_DIM}-d tower such as {DEFAULT_TOWER}."
            )
        self.digest = self._digest()

    @classmethod
    def load(cls, spec: str = DEFAULT_TOWER, device: str = "cpu") -> "TextTower":
        """Loads and freezes a tower.

        Args:
            spec: "tiny" (ships with the package), "local-dir:FOLDER" (open_clip's format, loaded strictly), or
                "NAME:TAG" of open_clip, which is downloaded once.
            device: A torch device.

        Returns:
            The tower in eval mode, float32, without gradients.

        Raises:
            ModelError: The tower is not found, cannot be downloaded, is not in open_clip's format, or is not a causal
                CLIP tower with 512-d embeddings.
        """
        if spec == "tiny":
            with as_file(files("prompt_tune") / "tiny" / "weights" / "tower") as folder:
                return cls._open(f"{LOCAL_PREFIX}{folder}", None, spec, device)
        if spec.startswith(LOCAL_PREFIX):
            folder = Path(spec.removeprefix(LOCAL_PREFIX))
            for part in ("open_clip_config.json", "open_clip_model.safetensors"):
                if not (folder / part).is_file():
                    raise ModelError(
                        f"Text tower '{spec}' has no {part}; a local tower is a folder in open_clip's format with "
                        "open_clip_config.json and open_clip_model.safetensors. Check the path."
                    )
            _refuse_downloads(folder / "open_clip_config.json", spec)
            return cls._open(spec, None, spec, device)
        name, _, tag = spec.partition(":")
        if not tag:
            raise ModelError(
                f"Text tower '{spec}' has no tag; the rule is 'tiny', 'local-dir:FOLDER' or open_clip's NAME:TAG, "
                f"such as {DEFAULT_TOWER}."
            )
        return cls._open(name, tag, spec, device)

    @classmethod
    def _open(cls, name: str, tag: str | None, spec: str, device: str) -> "TextTower":
        """Loads a tower through open_clip, and turns each of its failures into a `ModelError`."""
        with quiet_imports():
            import open_clip

        try:
            with _quiet(), nullcontext(True) if tag is None else _hub_or_offline() as reachable:
                model = open_clip.create_model(name, pretrained=tag, require_pretrained=True)
                tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # open_clip, the hub and safetensors each raise their own
            reason = (str(error) or type(error).__name__).splitlines()[0][:REASON_CHARACTERS].rstrip(".")
            if "download" in reason and not reachable:
                reason = "it is not on this machine, and there is no network to download it"
            cure = (
                "Check the name with `python -c 'import open_clip; print(open_clip.list_pretrained())'`; the first use "
                "downloads it, so without a network give local-dir:FOLDER."
                if tag
                else "The folder must hold open_clip's own format, complete and undamaged."
            )
            raise ModelError(f"Text tower '{spec}' cannot be loaded: {reason}. {cure}") from error
        return cls(model, tokenizer, spec, device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of token embedding, positions, blocks, norm and projection, by name."""
        found = {"positional_embedding": self.positional_embedding}
        for name in ("token_embedding", "transformer", "ln_final"):
            found |= {f"{name}.{k}": v for k, v in getattr(self, name).named_parameters()}
        if isinstance(self.text_projection, nn.Module):
            found |= {f"text_projection.{k}": v for k, v in self.text_projection.named_parameters()}
        elif self.text_projection is not None:
            found["text_projection"] = self.text_projection
        return found

    def tokenize(self, text: str) -> list[int]:
        """Turns a text into token ids, without start and end.

        Raises:
            VocabularyError: The text has no token, or too many for the window.
        """
        tokens = [int(token) for token in self.tokenizer.encode(text)]
        if not tokens:
            raise VocabularyError(f"Class name {text!r} has no token; a name needs a letter, a digit or a sign.")
        room = self.context_length - 2
        if len(tokens) > room:
            raise VocabularyError(
                f"Class name '{text}' has {len(tokens)} tokens; the window of {self.context_length} leaves room for "
                f"{room}. Shorten the name."
            )
        return tokens

    @property
    def start_token(self) -> int:
        """The id of the start-of-text token."""
        return int(self.tokenizer.sot_token_id)

    @property
    def end_token(self) -> int:
        """The id of the end-of-text token, at which the embedding is read."""
        return int(self.tokenizer.eot_token_id)

    def token_vectors(self, tokens: Sequence[int]) -> torch.Tensor:
        """Looks up the vectors of n token ids, before positions are added: (n, ctx_dim) float32."""
        weight: torch.Tensor = self.token_embedding.weight
        return weight[torch.as_tensor(tokens, device=self.device, dtype=torch.long)]

    def encode(self, vectors: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Computes embeddings of sequences of token vectors. Differentiable in the vectors.

        The tower is causal, so nothing after the end-of-text token reaches the embedding. Sequences therefore need no
        padding beyond the longest of them.

        Args:
            vectors: (n, length, ctx_dim) float32, including start and end.
            end: (n,) int64, the position of the end token.

        Returns:
            (n, 512) float32, unit L2 norm.

        Source: CLIP (arXiv 2103.00020), as in open_clip's `CLIP.encode_text`.
        """
        length = vectors.shape[1]
        x = vectors + self.positional_embedding[:length]  # (n, length, ctx_dim)
        x = self.transformer(x, attn_mask=self.attn_mask[:length, :length])
        x = self.ln_final(x)[torch.arange(len(x), device=x.device), end.to(x.device)]  # (n, ctx_dim)
        if isinstance(self.text_projection, nn.Module):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = x @ self.text_projection
        return nn.functional.normalize(x, dim=-1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, blank: bool = False) -> np.ndarray:
        """Computes embeddings of texts.

        Args:
            texts: n non-empty strings.
            blank: Whether texts may be empty or blank, as those of background rows.

        Returns:
            (n, 512) float32, unit L2 norm; row i belongs to texts[i].

        Raises:
            VocabularyError: A text is empty, or has too many tokens for the window.
        """
        tokens = [[] if blank and not text.strip() else self.tokenize(text) for text in texts]
        rows = [[self.start_token, *inner, self.end_token] for inner in tokens]
        out = np.empty((len(rows), EMBED_DIM), np.float32)
        for first in range(0, len(rows), BATCH):
            part = rows[first : first + BATCH]
            length = max(map(len, part))
            padded = torch.tensor([row + [0] * (length - len(row)) for row in part], device=self.device)  # (n, length)
            end = torch.tensor([len(row) - 1 for row in part])
            out[first : first + BATCH] = self.encode(self.token_embedding(padded), end).cpu().numpy()
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def embed_classes(self, classes: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Computes embeddings of classes with synonyms.

        Args:
            classes: n_cls tuples (name, synonym, ...); names must be unique.

        Returns:
            (n_cls, n_prompts, 512) float32, unit L2 norm. n_prompts is the length of the longest tuple; shorter ones
            are padded by repeating.

        Raises:
            VocabularyError: A name is empty or repeated, or a text has too many tokens for the window.
        """
        check_names([names[0] for names in classes])
        n_prompts = max(map(len, classes))
        rows = [names[i % len(names)] for names in classes for i in range(n_prompts)]
        unique = list(dict.fromkeys(rows))
        place = {text: i for i, text in enumerate(unique)}
        embeddings = self.embed(unique)[[place[text] for text in rows]]  # (n_cls * n_prompts, 512)
        return embeddings.reshape(len(classes), n_prompts, EMBED_DIM)  # (n_cls, n_prompts, 512)

    def _digest(self) -> str:
        """SHA-256 of names, shapes and float32 bytes of the parameters, in the order of the names."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.parameters().items()):
            digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def template_embeddings(
    tower: TextTower, texts: Sequence[Sequence[str]], templates: Sequence[str] | None = None
) -> np.ndarray:
    """Computes embeddings of names in hand-written sentences, averaged over the sentences.

    Args:
        tower: The text tower.
        texts: (name, synonym, ...) for each class.
        templates: Sentences with `{}` for the name; None takes those in prompts/templates.txt.

    Returns:
        (n_cls, n_prompts, 512) float32, unit L2 norm; a class with fewer texts repeats its own.

    Raises:
        VocabularyError: A sentence has too many tokens for the tower's window.

    Source: CLIP (arXiv 2103.00020), section 3.1.4: prompt ensembling in the embedding space.
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


def _refuse_downloads(config: Path, spec: str) -> None:
    """Refuse the configuration of a local tower that would make open_clip download a part of it, which it names."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        parts = [part for part in content["model_cfg"].values() if isinstance(part, dict)]
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return  # damaged: open_clip says so
    for part in parts:
        for key, value in part.items():
            if value and (key.startswith("hf_") or key == "timm_model_pretrained"):
                raise ModelError(
                    f"Text tower '{spec}' would be downloaded in part: open_clip_config.json has `{key}`. A local "
                    "tower holds everything; use one in open_clip's own format."
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Loads open_clip's models without its log lines, and turns its warning about a wrong QuickGELU into an error."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # without a handler, open_clip's first `logging.info` would add one that prints, for good
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            yield
    finally:
        root.removeHandler(silent)


@contextmanager
def _hub_or_offline() -> Iterator[bool]:
    """Yields whether the model hub can be reached. If not, its client works offline instead of waiting for long."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PROBE_SECONDS):
            reachable = True
    except OSError as error:  # URLError and timeouts are OSErrors
        reachable = isinstance(error, urllib.error.HTTPError)  # the hub answered
    constants.HF_HUB_OFFLINE = before or not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before
