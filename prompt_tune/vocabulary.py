"""Vocabularies: class names with their embeddings, and what they were made for, as `.vocab.safetensors` files.

A file holds all that inference needs, has no pickle, and has the same bytes whenever it has the same content. This
module runs on the inference box: numpy and safetensors only.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from prompt_tune.errors import VocabularyError
from prompt_tune.files import replacing
from prompt_tune.names import check_names
from prompt_tune.overlap import UNLIMITED
from prompt_tune.vocabulary_file import FIELDS, decode, encode

Kind = Literal["original", "learned", "plain"]
GuideMode = Literal["original", "own"]
FloatArray = npt.NDArray[np.float32]

EMBED_DIM = 512  # of ViT-B/32, YOLO-World's text tower
DEFAULT_THRESHOLD = 0.25  # ultralytics' `conf` for prediction
IDENTITY = (1.0, 0.0)  # scale and shift of a calibration that changes nothing
UNIT_TOLERANCE = 1e-4  # float32 rounding stays below 1e-6, float16 does not: its rows are not what we compute with
MAX_ROWS = 2**20  # n_cls * n_prompts: 2 GiB of embeddings

_DIGEST = re.compile(r"[0-9a-f]{64}")


def guide_digest(embeddings: npt.ArrayLike) -> str:
    """What identifies a guide: SHA-256 (hex) of the bytes of its embeddings, as little-endian float32 in C order."""
    return hashlib.sha256(np.ascontiguousarray(embeddings, dtype="<f4").tobytes()).hexdigest()


def _default_thresholds() -> FloatArray:
    return np.array(DEFAULT_THRESHOLD, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Classes that a frozen YOLO-World detects: names, embeddings, and what these were made for.

    Args:    names: n_cls unique, non-empty strings, in class-id order.
             embeddings: (n_cls, n_prompts, 512) float32, unit L2 norm; a class with fewer prompts repeats its own.
             thresholds: (n_cls,) float32 in 0..1, the score above which a detection counts; a scalar serves all.
             kind: "original" (guides the neck), "learned" (from context vectors) or "plain" (from names as they are).
             guide_mode: "own" for a vocabulary that guides the neck itself, in a pass of its own.
             detector: SHA-256 (hex) of the detector; "" in a plain vocabulary that is for any.
             text_tower: SHA-256 (hex) of the text tower.
             guide: `guide_digest` of the embeddings that guide the neck: for kind "original" and guide mode "own" this
                 vocabulary's own digest.
             calibration: (n_cls, 2) float32, scale (above 0) and shift of the logit; None leaves logits as they are.
             nms_iou: (n_cls,) float32 above 0, up to 1: a box that overlaps a better one of its class by more than this
                 is dropped, besides those that the detector's own limit drops; 1, or None for all, asks no more.
             provenance: seed, versions, metrics and the like, as plain JSON; no times, no paths.
    Raises:  VocabularyError: any of this does not hold.
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
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything, and keep private, read-only copies."""
        if isinstance(self.names, str) or not isinstance(self.names, Sequence):
            raise VocabularyError(f"`names` must be a list of class names. Received: {self.names!r}.")
        if not self.names:
            raise VocabularyError("A vocabulary must have at least one class. Received: none.")
        check_names(self.names)
        self._set("names", tuple(self.names))
        self._set("embeddings", _checked_embeddings(self.embeddings, self.names))
        n_cls = len(self.names)
        thresholds = _array(self.thresholds, "thresholds")
        if thresholds.ndim == 0:
            thresholds = _frozen(np.broadcast_to(thresholds, (n_cls,)))  # (n_cls,)
        if thresholds.shape != (n_cls,) or not ((thresholds >= 0) & (thresholds <= 1)).all():
            raise VocabularyError(
                f"`thresholds` must be {n_cls} numbers from 0 to 1, one a class. Received: shape {thresholds.shape}, "
                f"{_extent(thresholds)}."
            )
        self._set("thresholds", thresholds)
        if self.calibration is not None:
            self._set("calibration", _checked_calibration(self.calibration, n_cls))
        if self.nms_iou is not None:
            self._set("nms_iou", _checked_nms_iou(self.nms_iou, n_cls))
        self._check_origin()
        self._set("provenance", _plain_json(self.provenance))

    @property
    def n_prompts(self) -> int:
        """Prompts a class, repeated ones included."""
        return self.embeddings.shape[1]

    @property
    def calibration_rows(self) -> FloatArray:
        """(n_cls, 2) float32: the calibration, or the one that changes nothing."""
        if self.calibration is not None:
            return self.calibration
        return np.tile(np.array(IDENTITY, dtype=np.float32), (len(self.names), 1))  # (n_cls, 2)

    @property
    def nms_iou_rows(self) -> FloatArray:
        """(n_cls,) float32: the limits of overlap, or those that ask no more."""
        return np.full(len(self.names), UNLIMITED, np.float32) if self.nms_iou is None else self.nms_iou

    @property
    def digest(self) -> str:
        """`guide_digest` of the embeddings: what identifies this vocabulary where it is the guide."""
        return guide_digest(self.embeddings)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read a vocabulary file.

        Raises:  VocabularyError: the file is missing, damaged, of an unknown version, or breaks a rule of the format.
        """
        try:
            fields, tensors = decode(Path(path))
            if tensors["thresholds"].ndim == 0:
                raise VocabularyError("`thresholds` must have one number a class. Received: a scalar.")
            return cls(**(fields | tensors))
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all: the same vocabulary gives the same bytes.

        Raises:  VocabularyError: the place cannot be written, or the metadata is over the limit.
        """
        data = self.to_bytes()
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise VocabularyError(
                f"Cannot write the vocabulary {path}: {error.strerror}. Choose another place or make room."
            ) from error

    def to_bytes(self) -> bytes:
        """The content of the vocabulary file."""
        tensors = {"embeddings": self.embeddings, "thresholds": self.thresholds}
        tensors |= {name: rows for name in ("calibration", "nms_iou") if (rows := getattr(self, name)) is not None}
        return encode({name: getattr(self, name) for name in FIELDS}, tensors)

    def select(self, names: Sequence[str]) -> "Vocabulary":
        """A vocabulary of only these classes, in this order; an original vocabulary becomes another guide by it.

        Raises:  VocabularyError: a name is unknown or repeated, none is left, or the guide mode is "own".
        """
        self._check_known(names)
        if self.guide_mode == "own":
            raise VocabularyError(
                "A vocabulary of guide mode `own` guides the neck with all its classes; with fewer, its scores would "
                "change. Hide classes at detection instead (--hide)."
            )
        rows = [self.names.index(name) for name in names]
        embeddings = self.embeddings[rows]  # (len(names), n_prompts, 512)
        return replace(
            self,
            names=tuple(names),
            embeddings=embeddings,
            thresholds=self.thresholds[rows],
            calibration=None if self.calibration is None else self.calibration[rows],
            nms_iou=None if self.nms_iou is None else self.nms_iou[rows],
            guide=guide_digest(embeddings) if self.kind == "original" else self.guide,
        )

    def remove(self, names: Sequence[str]) -> "Vocabulary":
        """A vocabulary without these classes; what `select` says holds here.

        Raises:  VocabularyError: a name is unknown, none is left, or the guide mode is "own".
        """
        self._check_known(names)
        return self.select([name for name in self.names if name not in names])

    def rename(self, new_names: Mapping[str, str]) -> "Vocabulary":
        """A vocabulary with other names for the same embeddings.

        Args:    new_names: old name -> new name; all are changed at once, so two can be swapped.
        Raises:  VocabularyError: an old name is unknown, or a new one is empty or taken.
        """
        self._check_known(list(new_names))
        return replace(self, names=tuple(new_names.get(name, name) for name in self.names))

    def padded(self, n_prompts: int) -> FloatArray:
        """The embeddings with each class's prompts repeated up to `n_prompts`: (n_cls, n_prompts, 512) float32.

        The maximum over a class's prompts, its score, does not change by it.

        Raises:  VocabularyError: the vocabulary has more prompts than that.
        """
        if n_prompts < self.n_prompts:
            raise VocabularyError(f"`n_prompts` must be at least {self.n_prompts}. Received: {n_prompts}.")
        if n_prompts == self.n_prompts:
            return self.embeddings
        return self.embeddings[:, np.arange(n_prompts) % self.n_prompts]  # (n_cls, n_prompts, 512)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_origin(self) -> None:
        """Kind, guide mode and digests are known values and go together."""
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
                "`guide` must be the vocabulary's own digest where the kind is `original` or the guide mode `own`: "
                f"{self.digest}. Received: {self.guide}."
            )

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.names:
                raise VocabularyError(f"No class {name!r} in this vocabulary. It has: {_listing(self.names)}.")


def merge(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """One vocabulary with the classes of several, in the order given.

    Args:    vocabularies: learned or plain ones, for the same detector, text tower and guide, with no name in common.
    Returns: a vocabulary padded to the largest n_prompts; "learned" unless all are plain. Where only some have a
             calibration, the others get scale 1 and shift 0; an `nms_iou`, 1.
    Raises:  VocabularyError: there is none, or these do not go together.
    """
    if not vocabularies:
        raise VocabularyError("Nothing to merge: give at least one vocabulary.")
    first = vocabularies[0]
    for number, other in enumerate(vocabularies, start=1):
        if other.kind == "original" or other.guide_mode == "own":
            raise VocabularyError(
                f"Vocabulary {number} guides the neck (kind `{other.kind}`, guide mode `{other.guide_mode}`), and with "
                "more classes it would be another guide. Merge only learned or plain ones of guide mode `original`."
            )
        for what, label in (("detector", "detector"), ("text_tower", "text tower"), ("guide", "guide")):
            if getattr(other, what) != getattr(first, what):
                raise VocabularyError(
                    f"Vocabularies 1 and {number} were made for different {label}s: {short(getattr(first, what))} and "
                    f"{short(getattr(other, what))}. Build them for one detector, text tower and original vocabulary."
                )
    n_prompts = max(vocabulary.n_prompts for vocabulary in vocabularies)
    calibrated = any(vocabulary.calibration is not None for vocabulary in vocabularies)
    limited = any(vocabulary.nms_iou is not None for vocabulary in vocabularies)
    return Vocabulary(
        tuple(name for vocabulary in vocabularies for name in vocabulary.names),
        np.concatenate([vocabulary.padded(n_prompts) for vocabulary in vocabularies]),  # (sum of n_cls, n_prompts, 512)
        thresholds=np.concatenate([vocabulary.thresholds for vocabulary in vocabularies]),  # (sum of n_cls,)
        kind="plain" if all(vocabulary.kind == "plain" for vocabulary in vocabularies) else "learned",
        detector=first.detector,
        text_tower=first.text_tower,
        guide=first.guide,
        # (sum of n_cls, 2)
        calibration=np.concatenate([vocabulary.calibration_rows for vocabulary in vocabularies])
        if calibrated
        else None,
        nms_iou=np.concatenate([vocabulary.nms_iou_rows for vocabulary in vocabularies])
        if limited
        else None,  # (n_cls,)
        provenance={"merged": [{"digest": v.digest, "provenance": v.provenance} for v in vocabularies]},
    )


def short(digest: str) -> str:
    """The first twelve digits of a digest, for people; "any" where there is none."""
    return digest[:12] or "any"


def _frozen(array: npt.ArrayLike) -> FloatArray:
    """A private copy: float32, C order, read-only."""
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy


def _array(value: npt.ArrayLike, what: str) -> FloatArray:
    try:
        return _frozen(value)
    except (TypeError, ValueError) as error:
        raise VocabularyError(f"`{what}` must be an array of numbers. Received: {type(value).__name__}.") from error


def _checked_embeddings(value: npt.ArrayLike, names: Sequence[str]) -> FloatArray:
    """(n_cls, n_prompts, 512) float32, finite, unit rows, within the limit."""
    embeddings = value if isinstance(value, np.ndarray) else _array(value, "embeddings")
    n_cls, shape = len(names), embeddings.shape
    if len(shape) != 3 or shape[0] != n_cls or shape[1] < 1 or shape[2] != EMBED_DIM:
        raise VocabularyError(f"`embeddings` must be ({n_cls}, n_prompts, {EMBED_DIM}). Received: {shape}.")
    if shape[0] * shape[1] > MAX_ROWS:
        raise VocabularyError(f"A vocabulary has at most {MAX_ROWS} prompts in all. Received: {shape[0]} x {shape[1]}.")
    embeddings = _array(embeddings, "embeddings")  # copied once it is known to be within the limit
    # float64 sums, without a float64 copy of what may be 2 GiB
    norms = np.sqrt(np.einsum("cpd,cpd->cp", embeddings, embeddings, dtype=np.float64))  # (n_cls, n_prompts)
    if not (unit := np.abs(norms - 1) <= UNIT_TOLERANCE).all():  # never where a number is not finite
        first = int(np.argmin(unit.all(axis=1)))
        name, bad = names[first], norms[first]
        if not np.isfinite(bad).all():
            raise VocabularyError(f"`embeddings` must be finite; those of {name!r} are not. Build them again.")
        raise VocabularyError(
            f"`embeddings` must have unit L2 norm (within {UNIT_TOLERANCE}); those of {name!r} have "
            f"{_extent(bad)}. Divide each row by its norm."
        )
    return embeddings


def _checked_calibration(value: npt.ArrayLike, n_cls: int) -> FloatArray:
    """(n_cls, 2) float32, finite, scales above 0."""
    calibration = _array(value, "calibration")
    if calibration.shape != (n_cls, 2) or not np.isfinite(calibration).all() or (calibration[:, 0] <= 0).any():
        raise VocabularyError(
            f"`calibration` must be ({n_cls}, 2) finite numbers, a scale above 0 and a shift for each class. "
            f"Received: shape {calibration.shape}, {_extent(calibration)}."
        )
    return calibration


def _checked_nms_iou(value: npt.ArrayLike, n_cls: int) -> FloatArray:
    """(n_cls,) float32, above 0, up to 1."""
    nms_iou = _array(value, "nms_iou")
    if nms_iou.shape != (n_cls,) or not ((nms_iou > 0) & (nms_iou <= 1)).all():
        raise VocabularyError(
            f"`nms_iou` must be {n_cls} numbers above 0, up to 1, one a class. Received: shape {nms_iou.shape}, "
            f"{_extent(nms_iou)}."
        )
    return nms_iou


def _extent(array: npt.NDArray[Any]) -> str:
    return f"values from {array.min():.6g} to {array.max():.6g}" if array.size else "no values"


def _listing(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _plain_json(provenance: object) -> dict[str, Any]:
    """A copy as the file gives it back."""
    if not isinstance(provenance, dict):
        raise VocabularyError(f"`provenance` must be a JSON object. Received: {type(provenance).__name__}.")
    try:
        return cast(dict[str, Any], json.loads(json.dumps(provenance, sort_keys=True, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise VocabularyError(f"`provenance` must be plain JSON without NaN or infinity: {error}.") from error
