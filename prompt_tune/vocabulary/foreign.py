"""Vocabularies in other people's formats: AILab's `.npy` with class texts beside it, and ibaiGorordo's `.npz`.

AILab-CVC/YOLO-World (tools/generate_text_prompts.py writes it, tools/reparameterize_yoloworld.py reads it): float32
(n_cls, 512), unit rows; the names stand in a JSON file of their own, [["person"], ["bicycle"], ...].
ibaiGorordo/ONNX-YOLO-World-Open-Vocabulary-Object-Detection: `class_embeddings`, float32 (1, n_cls, 512), and
`class_list`, strings.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tune.contract import EMBED_DIM, Kind
from prompt_tune.errors import VocabularyError
from prompt_tune.files import replacing
from prompt_tune.vocabulary.checks import FloatArray
from prompt_tune.vocabulary.format import ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

OWN_SUFFIX = ".safetensors"
NPY, NPZ = ".npy", ".npz"
NPZ_KEYS = ("class_embeddings", "class_list")
MIN_COSINE = 0.999  # of one name's embeddings from one tower: float16 keeps 0.99999
MAX_NORM_ERROR = 0.01  # float16 rounding stays below 0.001; further off, rows are not meant to be unit
logger = logging.getLogger(__name__)


def convert(
    source: Path,
    out: Path,
    *,
    classes: Path | None = None,
    original: Path | None = None,
    kind: Kind = "plain",
    normalise: bool = False,
) -> list[Path]:
    """A vocabulary file in another format, or the other way round; the suffixes say which.

    Args:    source, out: one of them `.vocab.safetensors`, the other `.npy` or `.npz`.
             classes: the class texts that go with a `.npy`; None is the file beside it, of the same name and `.json`.
             original, kind, normalise: see `from_foreign`; for a vocabulary file that is to be written.
    Returns: the files that were written.
    Raises:  VocabularyError: the suffixes or options do not go together, or see `from_foreign` and `to_foreign`.
    """
    ours, theirs = (source, out) if source.suffix == OWN_SUFFIX else (out, source)
    if ours.suffix != OWN_SUFFIX or theirs.suffix not in (NPY, NPZ):
        raise VocabularyError(
            "One file must be a vocabulary (.vocab.safetensors), the other .npy or .npz. "
            f"Received: {source.name}, {out.name}."
        )
    if classes is not None and theirs.suffix == NPZ:
        raise VocabularyError(f"{theirs}: an .npz has its class names inside. Leave --classes out.")
    if theirs is out:
        if original is not None or kind != "plain" or normalise:
            raise VocabularyError(f"--original, --kind and --normalise are for reading. Leave them out to write {out}.")
        return to_foreign(Vocabulary.load(source), out, classes=classes)
    if original is None:
        raise VocabularyError(
            f"{source} does not say which detector it is for. Give --original, the original.vocab.safetensors of your "
            "bundle or run, or that folder."
        )
    path = original / ORIGINAL_FILE if original.is_dir() else original
    from_foreign(source, Vocabulary.load(path), classes=classes, kind=kind, normalise=normalise).save(out)
    return [out]


def from_foreign(
    source: Path, original: Vocabulary, *, classes: Path | None = None, kind: Kind = "plain", normalise: bool = False
) -> Vocabulary:
    """The vocabulary in a `.npy` or `.npz` file, bit for bit, for the detector that `original` was made for.

    Such a file does not tell what made its embeddings. For kind "plain" (names through the text tower as they are) and
    "original", names that `original` has too must therefore have its embeddings; "learned" takes them unchecked.

    Args:    source: the file. classes: as of `convert`.
             original: of kind "original"; its detector, text tower and guide are what the result is for.
             kind: of the result; "original" makes it the guide itself.
             normalise: divide each row by its norm, which is within 0.01 of one: for embeddings made in float16.
    Raises:  VocabularyError: a file is missing, damaged or of another shape or type, a name is empty or repeated, a row
             is not unit, or the embeddings are not of the original vocabulary's text tower.
    """
    if original.kind != "original":
        raise VocabularyError(
            f"--original must be a vocabulary of kind `original`: that of the bundle. Received: `{original.kind}`."
        )
    names, rows = _read_npz(source) if source.suffix == NPZ else _read_npy(source, classes or _beside(source))
    if normalise:
        rows = _normalised(rows, source)
    try:
        vocabulary = Vocabulary(
            tuple(names),
            rows[:, None],  # (n_cls, 1, 512)
            kind=kind,
            detector=original.detector,
            text_tower=original.text_tower,
            guide=guide_digest(rows) if kind == "original" else original.guide,
            provenance={"converted": {"format": source.suffix, "sha256": _sha256(source), "normalised": normalise}},
        )
    except VocabularyError as error:
        cure = "" if normalise or "unit" not in str(error) else " Made in float16? Give --normalise."
        raise VocabularyError(f"{source}: {error}{cure}") from error
    if kind != "learned":
        _check_tower(vocabulary, original, source)
    return vocabulary


def to_foreign(vocabulary: Vocabulary, out: Path, *, classes: Path | None = None) -> list[Path]:
    """Writes the embeddings, bit for bit, and the names as a `.npy` or `.npz`.

    Thresholds, calibration and digests have no place there: a log line says what stays behind.

    Args:    out, classes: as of `convert`.
    Returns: the files that were written: for a `.npy` also that of the class texts.
    Raises:  VocabularyError: a class has several prompts, or a file cannot be written.
    """
    rows = single_prompts(vocabulary, out)
    written = [out]
    try:
        if out.suffix == NPZ:
            with replacing(out) as path:  # `NPZ_KEYS`; (1, n_cls, 512)
                np.savez(path, class_embeddings=rows[None], class_list=np.array(vocabulary.names))
        else:
            texts = classes or _beside(out)
            written.append(texts)
            with replacing(out) as path, replacing(texts) as texts_path:
                np.save(path, rows)
                texts_path.write_text(json.dumps([[name] for name in vocabulary.names], ensure_ascii=False), "utf-8")
    except OSError as error:
        raise VocabularyError(f"Cannot write {out}: {error.strerror}. Choose another place or make room.") from error
    lost = "".join(f", {name}" for name in ("calibration", "nms_iou") if getattr(vocabulary, name) is not None)
    logger.info(
        "%s has no place for thresholds%s and digests; whoever reads it lets all its classes guide the neck.", out, lost
    )
    return written


def single_prompts(vocabulary: Vocabulary, place: Path) -> FloatArray:
    """(n_cls, 512) float32, the embeddings for a format with room for one a class.

    Args:    place: the file to write; it stands in the error.
    Raises:  VocabularyError: a class has several prompts, and a mean of them would score otherwise.
    """
    for name, prompts in zip(vocabulary.names, vocabulary.embeddings, strict=True):
        if not (prompts == prompts[0]).all():  # those repeated to pad are one
            raise VocabularyError(
                f"{place.name} has room for one embedding a class, and {name!r} has several prompts. Learn or build "
                "the vocabulary with one prompt a class and without synonyms, or leave such classes out (vocab remove)."
            )
    return np.ascontiguousarray(vocabulary.embeddings[:, 0])  # (n_cls, 512)


def _beside(source: Path) -> Path:
    return source.with_suffix(".json")


def _read_npy(source: Path, classes: Path) -> tuple[list[str], FloatArray]:
    """Names and float32 (n_cls, 512)."""
    rows = _load(source)
    if not isinstance(rows, np.ndarray):
        raise VocabularyError(f"{source} is no .npy file but an archive. Is it an .npz? Rename it.")
    rows = _checked_rows(rows, source, leading=False)
    names = _read_texts(classes)
    _check_count(names, rows, f"{classes} and {source}")
    return names, rows


def _read_npz(source: Path) -> tuple[list[str], FloatArray]:
    """Names and float32 (n_cls, 512)."""
    arrays = _load(source)
    if isinstance(arrays, np.ndarray):
        raise VocabularyError(f"{source} is no .npz file but a single array. Is it a .npy? Rename it.")
    if missing := [key for key in NPZ_KEYS if key not in arrays]:
        raise VocabularyError(f"{source} lacks {', '.join(missing)}; it has: {', '.join(arrays) or 'nothing'}.")
    embeddings, listed = (arrays[key] for key in NPZ_KEYS)
    if listed.ndim != 1 or listed.dtype.kind != "U":
        raise VocabularyError(
            f"{source}: `class_list` must be strings (n_cls,). Received: {listed.dtype} {listed.shape}."
        )
    names = [str(name) for name in listed]
    rows = _checked_rows(embeddings, source, leading=True)
    _check_count(names, rows, f"`class_list` and `class_embeddings` of {source}")
    return names, rows


def _load(source: Path) -> Any:
    """The array of a `.npy`, or the arrays of a `.npz` by name. Nothing is unpickled."""
    try:
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded}
    except FileNotFoundError as error:
        raise VocabularyError(f"{source}: there is no such file. Check the path.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VocabularyError(f"{source} is not an array file of numbers, or damaged ({error!s:.120}).") from error


def _checked_rows(array: np.ndarray, source: Path, *, leading: bool) -> FloatArray:
    """Float32 (n_cls, 512) from that or, where `leading`, from (1, n_cls, 512)."""
    wanted = f"float32 (1, n_cls, {EMBED_DIM})" if leading else f"float32 (n_cls, {EMBED_DIM})"
    shape = array.shape[1:] if leading and array.shape[:1] == (1,) else array.shape
    if array.dtype != np.float32 or len(shape) != 2 or shape[1] != EMBED_DIM or array.ndim != 2 + leading:
        raise VocabularyError(
            f"{source}: embeddings must be {wanted}, of CLIP ViT-B/32. Received: {array.dtype} {array.shape}."
        )
    return array.reshape(shape)  # (n_cls, 512)


def _read_texts(path: Path) -> list[str]:
    """The first text of each class, as AILab's tools take it."""
    try:
        classes = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise VocabularyError(f"There are no class texts {path}. Name the JSON file with --classes.") from error
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{path} is not a readable JSON file ({error!s:.120}).") from error
    if not isinstance(classes, list) or not all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in classes
    ):
        raise VocabularyError(f'{path} must hold class texts: [["person"], ["bicycle"], ...].')
    if any(len(texts) > 1 for texts in classes):
        logger.info("%s: the first text of each class is its name; its embedding is of no other.", path)
    return [texts[0] for texts in classes]


def _check_count(names: Sequence[str], rows: FloatArray, places: str) -> None:
    if len(names) != len(rows):
        raise VocabularyError(f"{places} must be of as many classes. Received: {len(names)} names, {len(rows)} rows.")


def _normalised(rows: FloatArray, source: Path) -> FloatArray:
    """Rows of unit norm, from rows that nearly have it."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)  # (n_cls, 1)
    if not (np.abs(norms - 1) <= MAX_NORM_ERROR).all():
        raise VocabularyError(
            f"{source}: norms must be within {MAX_NORM_ERROR} of 1 to be made 1. Received: {norms.min():.4g} to "
            f"{norms.max():.4g}: these are no text embeddings of YOLO-World."
        )
    return (rows / norms).astype(np.float32)  # (n_cls, 512)


def _check_tower(vocabulary: Vocabulary, original: Vocabulary, source: Path) -> None:
    """Names that both have must have one embedding, or the file is of another tower, or tuned."""
    shared = [name for name in vocabulary.names if name in original.names]
    if not shared:
        logger.info(
            "%s shares no name with the original vocabulary: whether its text tower is the same was not checked.",
            source,
        )
        return
    for name in shared:
        theirs = vocabulary.embeddings[vocabulary.names.index(name)]  # (1, 512)
        cosine = float((original.embeddings[original.names.index(name)] @ theirs.T).max())
        if not cosine > MIN_COSINE:
            raise VocabularyError(
                f"{source}: {name!r} has a cosine of {cosine:.4f} with that of the original vocabulary; from one text "
                f"tower it is above {MIN_COSINE}. Give embeddings of that tower, or --kind learned if they were tuned."
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
