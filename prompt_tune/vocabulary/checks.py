"""The rules of a vocabulary: what its arrays and provenance may hold, and what it was made for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from prompt_tune import strict_json
from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import PromptTuneError, VocabularyError

FloatArray = npt.NDArray[np.float32]
UNIT_TOLERANCE = 1e-4  # float32 rounding stays below 1e-6; rows rounded to float16 are refused
MAX_OFFSET = 0.4  # of a box's width or height: a fifth of a box is left at least, so none turns inside out
MAX_ROWS = 2**20  # n_cls * n_prompts: 2 GiB of embeddings


def short(digest: str) -> str:
    """The first twelve digits of a digest, or "any" for the empty one."""
    return digest[:12] or "any"


def frozen(array: npt.ArrayLike) -> FloatArray:
    """A private copy: float32, C order, read-only."""
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy


def as_floats(value: npt.ArrayLike, what: str) -> FloatArray:
    """A private, read-only float32 copy of numbers, which the error calls `what`."""
    try:
        return frozen(value)
    except (TypeError, ValueError) as error:
        raise VocabularyError(f"`{what}` must be an array of numbers. Received: {type(value).__name__}.") from error


def checked_embeddings(value: npt.ArrayLike, names: Sequence[str]) -> FloatArray:
    """A copy of embeddings that are (n_cls, n_prompts, 512), finite, of unit norm and within `MAX_ROWS`."""
    embeddings = value if isinstance(value, np.ndarray) else as_floats(value, "embeddings")
    n_cls, shape = len(names), embeddings.shape
    if len(shape) != 3 or shape[0] != n_cls or shape[1] < 1 or shape[2] != EMBED_DIM:
        raise VocabularyError(f"`embeddings` must be ({n_cls}, n_prompts, {EMBED_DIM}). Received: {shape}.")
    if shape[0] * shape[1] > MAX_ROWS:
        raise VocabularyError(f"A vocabulary has at most {MAX_ROWS} prompts in all. Received: {shape[0]} x {shape[1]}.")
    embeddings = as_floats(embeddings, "embeddings")  # copied only now: the size is within the limit
    # sums in float64, without a float64 copy of up to 2 GiB
    norms = np.sqrt(np.einsum("cpd,cpd->cp", embeddings, embeddings, dtype=np.float64))  # (n_cls, n_prompts)
    if not (unit := np.abs(norms - 1) <= UNIT_TOLERANCE).all():  # false also for numbers that are not finite
        first = int(np.argmin(unit.all(axis=1)))
        name, bad = names[first], norms[first]
        if not np.isfinite(bad).all():
            raise VocabularyError(f"`embeddings` must be finite; those of {name!r} are not. Build them again.")
        raise VocabularyError(
            f"`embeddings` must have unit L2 norm (within {UNIT_TOLERANCE}); those of {name!r} have "
            f"{extent(bad)}. Divide each row by its norm."
        )
    return embeddings


def checked_calibration(value: npt.ArrayLike, n_cls: int) -> FloatArray:
    """A copy of a calibration that is (n_cls, 2) and finite, with scales above 0."""
    calibration = as_floats(value, "calibration")
    if calibration.shape != (n_cls, 2) or not np.isfinite(calibration).all() or (calibration[:, 0] <= 0).any():
        raise VocabularyError(
            f"`calibration` must be ({n_cls}, 2) finite numbers: a scale above 0 and a shift for each class. "
            f"Received: shape {calibration.shape}, {extent(calibration)}."
        )
    return calibration


def checked_nms_iou(value: npt.ArrayLike, n_cls: int) -> FloatArray:
    """A copy of NMS IoUs that are (n_cls,), above 0 and at most 1."""
    nms_iou = as_floats(value, "nms_iou")
    if nms_iou.shape != (n_cls,) or not ((nms_iou > 0) & (nms_iou <= 1)).all():
        raise VocabularyError(
            f"`nms_iou` must be {n_cls} numbers above 0 and at most 1, one per class. Received: shape "
            f"{nms_iou.shape}, {extent(nms_iou)}."
        )
    return nms_iou


def checked_box_offsets(value: npt.ArrayLike, n_cls: int) -> FloatArray:
    """A copy of box offsets that are (n_cls, 4), from -`MAX_OFFSET` to `MAX_OFFSET`."""
    offsets = as_floats(value, "box_offsets")
    if offsets.shape != (n_cls, 4) or not (np.abs(offsets) <= np.float32(MAX_OFFSET)).all():
        raise VocabularyError(
            f"`box_offsets` must be ({n_cls}, 4) numbers from -{MAX_OFFSET} to {MAX_OFFSET}: for each class, how far "
            "left, top, right and bottom edge move, in shares of the box's width and height. Received: shape "
            f"{offsets.shape}, {extent(offsets)}."
        )
    return offsets


def extent(array: npt.NDArray[Any]) -> str:
    """The range of an array's values, for an error message."""
    return f"values from {array.min():.6g} to {array.max():.6g}" if array.size else "no values"


def listing(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list, for an error message."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def plain_json(provenance: object) -> dict[str, Any]:
    """A copy of the provenance, equal to what the file will give back."""
    if not isinstance(provenance, dict):
        raise VocabularyError(f"`provenance` must be a JSON object. Received: {type(provenance).__name__}.")
    try:
        text = json.dumps(provenance, sort_keys=True, allow_nan=False)
        return cast(dict[str, Any], strict_json.parse(text, depth=strict_json.MAX_DEPTH - 1))  # it lies in an object
    except (TypeError, ValueError, RecursionError) as error:
        raise VocabularyError(f"`provenance` must be plain JSON without NaN or infinity: {error}.") from error


def check_made_for(
    place: str,
    made_for: Mapping[str, str | None],
    here: Mapping[str, str | None],
    *,
    holder: str,
    cure: str,
    error: type[PromptTuneError] = VocabularyError,
) -> None:
    """Refuse what was made for another detector, text tower or guide.

    Args:
        place: The file or part to check, as the error names it.
        made_for: The digests that it states, under "detector", "text tower" or "guide"; "" fits any.
        here: The digests to compare with, under the same keys.
        holder: What has those digests, as the error names it.
        cure: A sentence that says what to do.
        error: The class of error to raise.

    Raises:
        PromptTuneError: A digest differs. The error is of the class `error`.
    """
    for what, was in made_for.items():
        has = here[what]
        if was not in ("", has):
            raise error(f"{place} was made for {what} {short(str(was))}, but {holder} has {short(str(has))}. {cure}")
