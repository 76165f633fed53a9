"""Vocabularies: classes with their embeddings, and what these were made for, as `.vocab.safetensors` files.

A file holds all that inference needs and no pickle, and equal content gives equal bytes.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from prompt_tune.contract import DEFAULT_THRESHOLD, IDENTITY, UNLIMITED, GuideMode, Kind
from prompt_tune.errors import VocabularyError
from prompt_tune.files import saving
from prompt_tune.hub import local_file
from prompt_tune.vocabulary.background import Background, checked_background
from prompt_tune.vocabulary.checks import (
    FloatArray,
    as_floats,
    check_made_for,
    checked_box_offsets,
    checked_calibration,
    checked_embeddings,
    checked_nms_iou,
    extent,
    frozen,
    listing,
    plain_json,
)
from prompt_tune.vocabulary.format import BACKGROUND, FIELDS, OPTIONAL_TENSORS, Provenance, decode, encode
from prompt_tune.vocabulary.names import KeptName, check_names, kept_names
from prompt_tune.wording import counted

ODD_NAMES = "class names have characters that control the direction of text: {}. Rename them (`vocab rename`)."
log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def guide_digest(embeddings: npt.ArrayLike) -> str:
    """The digest of a guide: SHA-256 (hex) of its embeddings as little-endian float32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(embeddings, dtype="<f4").tobytes()).hexdigest()


def _default_thresholds() -> FloatArray:
    return np.array(DEFAULT_THRESHOLD, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Classes that a frozen YOLO-World detects: names, embeddings, and what these were made for.

    Arrays are kept as private, read-only copies.

    Attributes:
        names: n_cls unique, non-empty strings, in class-id order.
        embeddings: (n_cls, n_prompts, 512) float32, unit L2 norm. A class with fewer prompts repeats its own.
        thresholds: (n_cls,) float32 in 0..1. A detection counts if its score is above. A scalar is for all classes.
        kind: "original" (guides the neck), "learned" (from context vectors) or "plain" (from the names alone).
        guide_mode: "own" for a vocabulary that guides the neck itself, in a pass of its own.
        detector: SHA-256 (hex) of the detector. "" in a plain vocabulary that is for any detector.
        text_tower: SHA-256 (hex) of the text tower.
        guide: `guide_digest` of the embeddings that guide the neck. For kind "original" and guide mode "own", that is
            the vocabulary's own digest.
        calibration: (n_cls, 2) float32, scale (above 0) and shift of the logit. None leaves scores as they are.
        nms_iou: (n_cls,) float32 above 0 and at most 1. A box is also dropped if it overlaps a better box of its class
            by more than this. 1, or None for all classes, adds nothing to the detector's own suppression.
        box_offsets: (n_cls, 4) float32 from -0.4 to 0.4, how far the left, top, right and bottom edge of the class's
            boxes are moved, in shares of the box's width and height; see `runtime.offsets`. None moves nothing. An
            original vocabulary has none.
        background: Name and encoded text of each row that is no class: it guides the neck and scores, and nothing shows
            it. Only an original vocabulary has such rows.
        provenance: How the vocabulary was made, as plain JSON.

    Raises:
        VocabularyError: A value breaks one of these rules.
    """

    names: tuple[str, ...]
    embeddings: FloatArray
    _: KW_ONLY
    thresholds: FloatArray = field(default_factory=_default_thresholds)
    kind: Kind
    guide_mode: GuideMode = "original"
    detector: str
    text_tower: str
    guide: str
    calibration: FloatArray | None = None
    nms_iou: FloatArray | None = None
    box_offsets: FloatArray | None = None
    background: Background = ()
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        """Check everything, and keep private, read-only copies."""
        if isinstance(self.names, str) or not isinstance(self.names, Sequence):
            raise VocabularyError(f"`names` must be a list of class names. Received: {self.names!r}.")
        if not self.names:
            raise VocabularyError("A vocabulary must have at least one class. Received: no class.")
        check_names(self.names)
        self._set("names", tuple(self.names))
        self._set("embeddings", checked_embeddings(self.embeddings, self.names))
        n_cls = len(self.names)
        thresholds = as_floats(self.thresholds, "thresholds")
        if thresholds.ndim == 0:
            thresholds = frozen(np.broadcast_to(thresholds, (n_cls,)))  # (n_cls,)
        if thresholds.shape != (n_cls,) or not ((thresholds >= 0) & (thresholds <= 1)).all():
            raise VocabularyError(
                f"`thresholds` must be {n_cls} numbers from 0 to 1, one per class. Received: shape "
                f"{thresholds.shape}, {extent(thresholds)}."
            )
        self._set("thresholds", thresholds)
        if self.calibration is not None:
            self._set("calibration", checked_calibration(self.calibration, n_cls))
        if self.nms_iou is not None:
            self._set("nms_iou", checked_nms_iou(self.nms_iou, n_cls))
        if self.box_offsets is not None:
            self._set("box_offsets", checked_box_offsets(self.box_offsets, n_cls))
            if self.kind == "original":
                raise VocabularyError(
                    "A vocabulary of kind `original` has no `box_offsets`: original boxes stay. Leave them out."
                )
        self._check_origin()
        self._set("background", checked_background(self.background, self.names, self.kind))
        self._set("provenance", cast(Provenance, plain_json(self.provenance)))

    def __repr__(self) -> str:
        """One line: how many classes of which kind, and their names."""
        guide = ", guide mode own" if self.guide_mode == "own" else ""
        shown = self.class_names
        return f"<Vocabulary of {counted(len(shown), f'{self.kind} class')}{guide}: {listing(shown)}>"

    @property
    def is_background(self) -> npt.NDArray[np.bool_]:
        """The rows that are no class: (n_cls,) bool."""
        marked = {name for name, _ in self.background}
        return np.array([name in marked for name in self.names], dtype=bool)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes, without background rows."""
        return tuple(name for name, hidden in zip(self.names, self.is_background, strict=True) if not hidden)

    @property
    def n_prompts(self) -> int:
        """Number of prompts per class, including repeated ones."""
        return self.embeddings.shape[1]

    @property
    def calibration_rows(self) -> FloatArray:
        """The calibration, or one that changes nothing: (n_cls, 2) float32."""
        if self.calibration is not None:
            return self.calibration
        return np.tile(np.array(IDENTITY, dtype=np.float32), (len(self.names), 1))  # (n_cls, 2)

    @property
    def nms_iou_rows(self) -> FloatArray:
        """The NMS IoUs, or those that drop nothing: (n_cls,) float32."""
        return np.full(len(self.names), UNLIMITED, np.float32) if self.nms_iou is None else self.nms_iou

    @property
    def box_offsets_rows(self) -> FloatArray:
        """The box offsets, or those that move nothing: (n_cls, 4) float32."""
        return np.zeros((len(self.names), 4), np.float32) if self.box_offsets is None else self.box_offsets

    @property
    def digest(self) -> str:
        """`guide_digest` of the embeddings, which identifies this vocabulary as a guide."""
        return guide_digest(self.embeddings)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary file, also one on the Hugging Face Hub: "hf://user/name/learned.vocab.safetensors".

        Raises:
            VocabularyError: The file is missing, damaged or of an unknown version, or breaks a rule of the format.
            PromptTuneError: The Hub does not give it.
        """
        try:
            values, tensors = decode(local_file(path))
            if tensors["thresholds"].ndim == 0:
                raise VocabularyError("`thresholds` must have one number per class. Received: a scalar.")
            if values.get(BACKGROUND) == []:
                raise VocabularyError("`background` must name a row. Received: an empty list.")
            if isinstance(values["names"], list):
                values["names"] = kept_names(values["names"])
                if odd := [name for name in values["names"] if isinstance(name, KeptName)]:
                    log.warning("%s: %s", path, ODD_NAMES.format(", ".join(map(ascii, odd[:10]))))
            return cls(**(values | tensors))
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the vocabulary file, whole or not at all. The same vocabulary gives the same bytes.

        Raises:
            VocabularyError: The file cannot be written, or the metadata is over the limit.
        """
        data = self.to_bytes()
        with saving(path, VocabularyError) as temporary:
            temporary.write_bytes(data)

    def to_bytes(self) -> bytes:
        """The content of the vocabulary file."""
        tensors = {"embeddings": self.embeddings, "thresholds": self.thresholds}
        tensors |= {name: rows for name in sorted(OPTIONAL_TENSORS) if (rows := getattr(self, name)) is not None}
        marks = {BACKGROUND: self.background} if self.background else {}
        return encode({name: getattr(self, name) for name in FIELDS} | marks, tensors)

    def select(self, names: Sequence[str]) -> "Vocabulary":
        """A vocabulary with only these classes, in this order. From an original vocabulary, it is another guide.

        Raises:
            VocabularyError: A name is unknown or repeated, there are no names, or the guide mode is "own".
        """
        self._check_known(names)
        if self.guide_mode == "own":
            raise VocabularyError(
                "A vocabulary of guide mode `own` guides the neck with all its classes; with fewer classes, scores "
                "would change. Hide classes during detection instead (--hide)."
            )
        row_of = {name: row for row, name in enumerate(self.names)}
        rows = [row_of[name] for name in names]
        embeddings, texts = self.embeddings[rows], dict(self.background)  # (len(names), n_prompts, 512)
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),  # as this vocabulary has them, see `KeptName`
            embeddings=embeddings,
            thresholds=self.thresholds[rows],
            calibration=None if self.calibration is None else self.calibration[rows],
            nms_iou=None if self.nms_iou is None else self.nms_iou[rows],
            box_offsets=None if self.box_offsets is None else self.box_offsets[rows],
            guide=guide_digest(embeddings) if self.kind == "original" else self.guide,
            background=tuple((self.names[row], texts[self.names[row]]) for row in rows if self.names[row] in texts),
        )

    def remove(self, names: Sequence[str]) -> "Vocabulary":
        """A vocabulary without these classes. From an original vocabulary, it is another guide.

        Raises:
            VocabularyError: A name is unknown, no class would be left, or the guide mode is "own".
        """
        self._check_known(names)
        removed = set(names)
        return self.select([name for name in self.names if name not in removed])

    def rename(self, new_names: Mapping[str, str]) -> "Vocabulary":
        """A vocabulary with other names for the same embeddings.

        Args:
            new_names: New names by old name. All change at once, so two classes can swap names.

        Raises:
            VocabularyError: An old name is unknown, or a new name is empty or taken.
        """
        self._check_known(list(new_names))
        return replace(
            self,
            names=tuple(new_names.get(name, name) for name in self.names),
            background=tuple((new_names.get(name, name), text) for name, text in self.background),
        )

    def padded(self, n_prompts: int) -> FloatArray:
        """The embeddings, with prompts repeated up to `n_prompts` per class: (n_cls, n_prompts, 512) float32.

        A class's score is the maximum over its prompts, so this does not change it.

        Raises:
            VocabularyError: The vocabulary has more prompts than that.
        """
        if n_prompts < self.n_prompts:
            raise VocabularyError(f"`n_prompts` must be at least {self.n_prompts}. Received: {n_prompts}.")
        if n_prompts == self.n_prompts:
            return self.embeddings
        return self.embeddings[:, np.arange(n_prompts) % self.n_prompts]  # (n_cls, n_prompts, 512)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, ({part.name: getattr(self, part.name) for part in fields(self)},)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_origin(self) -> None:
        """Refuse kinds, guide modes and digests that are unknown or do not go together."""
        for what, value, allowed in (
            ("kind", self.kind, get_args(Kind)),
            ("guide_mode", self.guide_mode, get_args(GuideMode)),
        ):
            if value not in allowed:
                raise VocabularyError(f"`{what}` must be one of {', '.join(allowed)}. Received: {value!r}.")
        for what in ("detector", "text_tower", "guide"):
            value = getattr(self, what)
            if what == "detector" and value == "" and self.kind == "plain":
                continue
            if not isinstance(value, str) or not _DIGEST.fullmatch(value):
                raise VocabularyError(f"`{what}` must be a SHA-256 digest, 64 hex digits. Received: {value!r}.")
        if (self.kind == "original" or self.guide_mode == "own") and self.guide != self.digest:
            raise VocabularyError(
                "`guide` must be the vocabulary's own digest if the kind is `original` or the guide mode `own`: "
                f"{self.digest}. Received: {self.guide}."
            )

    def _check_known(self, names: Sequence[str]) -> None:
        known = set(self.names)
        for name in names:
            if name not in known:
                raise VocabularyError(f"No class {name!r} in this vocabulary. It has: {listing(self.names)}.")


def merge(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """One vocabulary with the classes of several, in the order given.

    Args:
        vocabularies: Learned or plain ones for the same detector, text tower and guide, without common names.

    Returns:
        A vocabulary padded to the largest n_prompts. Its kind is "learned" unless all are plain. If only some have a
        calibration, NMS IoUs or box offsets, the others get values that change nothing.

    Raises:
        VocabularyError: There are no vocabularies, or they do not go together.
    """
    if not vocabularies:
        raise VocabularyError("Nothing to merge: give at least one vocabulary.")
    first = vocabularies[0]
    for number, other in enumerate(vocabularies, start=1):
        if other.kind == "original" or other.guide_mode == "own":
            raise VocabularyError(
                f"Vocabulary {number} guides the neck (kind `{other.kind}`, guide mode `{other.guide_mode}`); with "
                "more classes, it would be another guide. Merge only learned or plain ones of guide mode `original`."
            )
        check_made_for(
            f"Vocabulary {number}",
            _origin(other),
            _origin(first),
            holder="vocabulary 1",
            cure="Build them for one detector, text tower and original vocabulary.",
        )
    n_prompts = max(vocabulary.n_prompts for vocabulary in vocabularies)
    calibrated = any(vocabulary.calibration is not None for vocabulary in vocabularies)
    limited = any(vocabulary.nms_iou is not None for vocabulary in vocabularies)
    moved = any(vocabulary.box_offsets is not None for vocabulary in vocabularies)
    return Vocabulary(
        tuple(name for vocabulary in vocabularies for name in vocabulary.names),
        np.concatenate([part.padded(n_prompts) for part in vocabularies]),  # (n_cls, n_prompts, 512)
        thresholds=np.concatenate([part.thresholds for part in vocabularies]),  # (n_cls,)
        kind="plain" if all(part.kind == "plain" for part in vocabularies) else "learned",
        detector=first.detector,
        text_tower=first.text_tower,
        guide=first.guide,
        calibration=np.concatenate([part.calibration_rows for part in vocabularies]) if calibrated else None,
        nms_iou=np.concatenate([part.nms_iou_rows for part in vocabularies]) if limited else None,
        box_offsets=np.concatenate([part.box_offsets_rows for part in vocabularies]) if moved else None,
        provenance={"merged": [{"digest": part.digest, "provenance": part.provenance} for part in vocabularies]},
    )


def _origin(vocabulary: Vocabulary) -> dict[str, str]:
    """What a vocabulary was made for. "any" detector is a value of its own here: a merged file has one detector."""
    return {
        "detector": vocabulary.detector or "any",
        "text tower": vocabulary.text_tower,
        "guide": vocabulary.guide,
    }


def _rebuilt(values: dict[str, Any]) -> Vocabulary:
    """A vocabulary that was pickled, checked again and with read-only arrays."""
    return Vocabulary(**values)
