"""Vocabularies in other projects' formats: AILab's `.npy` with names in JSON, ibaiGorordo's and ultralytics' `.npz`.

AILab-CVC/YOLO-World: float32 (n_cls, 512) with unit rows, written by tools/generate_text_prompts.py and read by
tools/reparameterize_yoloworld.py. The JSON file beside it holds the names: [["person"], ["bicycle"], ...].
ibaiGorordo/ONNX-YOLO-World-Open-Vocabulary-Object-Detection: `class_embeddings`, float32 (1, n_cls, 512), and
`class_list`, strings.
ultralytics 8.4, `save_prompt_embeddings` of YOLOE: `embeddings`, float32 (1, n_cls, 512), `names`, strings, and
`model`, the name of the model whose text tower made them. Such a file is read, and not written.
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
from prompt_tune.files import MAX_METADATA_BYTES, is_special, saving
from prompt_tune.texts import parse_json, regular_bytes
from prompt_tune.vocabulary.background import named
from prompt_tune.vocabulary.checks import FloatArray
from prompt_tune.vocabulary.format import MAX_FILE_BYTES, ORIGINAL_FILE
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

OWN_SUFFIX = ".safetensors"
NPY, NPZ = ".npy", ".npz"
NPZ_KEYS = ("class_embeddings", "class_list")
BOUND_KEYS = ("embeddings", "names", "model")  # of ultralytics, for one model
MIN_COSINE = 0.999  # two embeddings of a name by the same tower; rounding to float16 keeps 0.99999
MAX_NORM_ERROR = 0.01  # float16 rounding stays below 0.001
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
    """Convert a vocabulary file to another format or back; the suffixes say which way.

    Args:
        source: A `.vocab.safetensors`, `.npy` or `.npz` file.
        out: The file to write. One of the two files must be `.vocab.safetensors`, the other must not.
        classes: The JSON file with the names for a `.npy`. By default, the file beside it with the suffix `.json`.
        original: The original vocabulary, or the bundle or run folder that has it. Required to write a vocabulary file.
        kind: See `from_foreign`.
        normalise: See `from_foreign`.

    Returns:
        The files that were written.

    Raises:
        VocabularyError: The suffixes or options do not go together, or see `from_foreign` and `to_foreign`.
    """
    ours, theirs = (source, out) if source.suffix == OWN_SUFFIX else (out, source)
    if ours.suffix != OWN_SUFFIX or theirs.suffix not in (NPY, NPZ):
        raise VocabularyError(
            "One file must be a vocabulary (.vocab.safetensors), the other .npy or .npz. "
            f"Received: {source.name}, {out.name}."
        )
    if classes is not None and theirs.suffix == NPZ:
        raise VocabularyError(f"{theirs}: an .npz file contains its class names. Leave --classes out.")
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
    """Read a `.npy` or `.npz` file as a vocabulary, bit for bit.

    Such a file does not say which text tower made its embeddings. For the kinds "plain" and "original", names that
    `original` has too must therefore have the same embeddings there, and ultralytics' files, which are for one model,
    must share a name with it. The kind "learned" is not checked.

    Args:
        source: The `.npy` or `.npz` file.
        original: A vocabulary of kind "original". The result is for its detector, text tower and guide.
        classes: See `convert`.
        kind: Of the result. "original" makes it a guide, in which a class with a blank text is a background row.
        normalise: Divide each row by its norm, which must be within 0.01 of 1. For embeddings made in float16.

    Raises:
        VocabularyError: A file is missing, damaged, or of another shape or type; a name is empty or repeated; a row
            does not have unit norm; or the embeddings are from another text tower.
    """
    if original.kind != "original":
        raise VocabularyError(
            f"--original must be a vocabulary of kind `original`, such as a bundle's. Received: `{original.kind}`."
        )
    model = None
    if source.suffix == NPZ:
        names, rows, model = _read_npz(source)
    else:
        names, rows = _read_npy(source, classes or _beside(source))
    if normalise:
        rows = _normalised(rows, source)
    converted = {"format": source.suffix, "sha256": _sha256(source), "normalised": normalise}
    converted |= {} if model is None else {"model": model}
    texts, background = named(names) if kind == "original" else (tuple(names), ())
    try:
        vocabulary = Vocabulary(
            texts,
            rows[:, None],  # (n_cls, 1, 512)
            kind=kind,
            detector=original.detector,
            text_tower=original.text_tower,
            guide=guide_digest(rows) if kind == "original" else original.guide,
            background=background,
            provenance={"converted": converted},
        )
    except VocabularyError as error:
        cure = "" if normalise or "unit" not in str(error) else " Made in float16? Give --normalise."
        if "" in map(str.strip, names):
            cure = " Is it a background row? Only --kind original has such rows."
        raise VocabularyError(f"{source}: {error}{cure}") from error
    if kind != "learned":
        _check_tower(vocabulary, original, source, model)
    elif model is not None:
        logger.info("%s was saved for '%s'. Its text tower was not checked.", source, model)
    return vocabulary


def to_foreign(vocabulary: Vocabulary, out: Path, *, classes: Path | None = None) -> list[Path]:
    """Write embeddings, bit for bit, and names as a `.npy` or `.npz` file.

    These formats have no place for thresholds, calibration and digests; a log line says what is lost.

    Args:
        vocabulary: With one prompt per class.
        out: The file to write.
        classes: See `convert`.

    Returns:
        The files that were written: for a `.npy`, also the JSON file with the names.

    Raises:
        VocabularyError: A class has several prompts, or a file cannot be written.
    """
    rows = single_prompts(vocabulary, out)
    encoded = dict(vocabulary.background)
    names = [encoded.get(name, name) for name in vocabulary.names]  # background rows as those projects have them
    written = [out]
    if out.suffix == NPZ:
        with saving(out, VocabularyError) as path:  # `NPZ_KEYS`; (1, n_cls, 512)
            np.savez(path, class_embeddings=rows[None], class_list=np.array(names))
    else:
        texts = classes or _beside(out)
        written.append(texts)
        with saving(out, VocabularyError) as path, saving(texts, VocabularyError) as texts_path:
            np.save(path, rows)
            texts_path.write_text(json.dumps([[name] for name in names], ensure_ascii=False), "utf-8")
    optional = ("calibration", "nms_iou", "box_offsets")
    lost = "".join(f", {name}" for name in optional if getattr(vocabulary, name) is not None)
    logger.info(
        "%s has no place for thresholds%s and digests; a reader lets all its classes guide the neck.", out, lost
    )
    return written


def single_prompts(vocabulary: Vocabulary, place: Path) -> FloatArray:
    """The embeddings for a format that has one embedding per class: (n_cls, 512) float32.

    Args:
        vocabulary: With one prompt per class, which may be repeated as padding.
        place: The file to write, as the error names it.

    Raises:
        VocabularyError: A class has several prompts. Their mean would give other scores.
    """
    for name, prompts in zip(vocabulary.names, vocabulary.embeddings, strict=True):
        if not (prompts == prompts[0]).all():
            raise VocabularyError(
                f"{place.name} has room for one embedding per class, but {name!r} has several prompts. Learn or build "
                "the vocabulary with one prompt per class and no synonyms, or leave such classes out (vocab remove)."
            )
    return np.ascontiguousarray(vocabulary.embeddings[:, 0])  # (n_cls, 512)


def _beside(source: Path) -> Path:
    return source.with_suffix(".json")


def _read_npy(source: Path, classes: Path) -> tuple[list[str], FloatArray]:
    """Names and float32 (n_cls, 512)."""
    rows = _load(source)
    if not isinstance(rows, np.ndarray):
        raise VocabularyError(f"{source} is not a .npy file but an archive. If it is an .npz, rename it.")
    rows = _checked_rows(rows, source, leading=False)
    names = _read_texts(classes)
    _check_count(names, rows, f"{classes} and {source}")
    return names, rows


def _read_npz(source: Path) -> tuple[list[str], FloatArray, str | None]:
    """Names, float32 (n_cls, 512), and the model that the file is for, if it says so."""
    arrays = _load(source)
    if isinstance(arrays, np.ndarray):
        raise VocabularyError(f"{source} is not an .npz file but a single array. If it is a .npy, rename it.")
    bound = arrays.keys() == {*BOUND_KEYS}
    place, texts = BOUND_KEYS[:2] if bound else NPZ_KEYS
    if missing := [key for key in (place, texts) if key not in arrays]:
        raise VocabularyError(f"{source} lacks {', '.join(missing)}; it has: {', '.join(arrays) or 'nothing'}.")
    listed, model = arrays[texts], arrays["model"] if bound else None
    if listed.ndim != 1 or listed.dtype.kind != "U":
        raise VocabularyError(f"{source}: `{texts}` must be strings (n_cls,). Received: {listed.dtype} {listed.shape}.")
    if model is not None and (model.ndim != 0 or model.dtype.kind != "U"):
        raise VocabularyError(f"{source}: `model` must be a string. Received: {model.dtype} {model.shape}.")
    names = [str(name) for name in listed]
    rows = _checked_rows(arrays[place], source, leading=True)
    _check_count(names, rows, f"`{texts}` and `{place}` of {source}")
    return names, rows, None if model is None else str(model)


def _load(source: Path) -> Any:
    """The array of a `.npy`, or the arrays of an `.npz` by name. Nothing is unpickled."""
    if is_special(source):
        raise VocabularyError(f"{source} is a pipe, a socket or a device. Give a file.")
    try:
        size = source.stat().st_size
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:  # no more than it states is unpacked
                size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise VocabularyError(f"{source}: at most {MAX_FILE_BYTES:,} bytes are read. It has {size:,}. Split it.")
        loaded = np.load(source, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {key: loaded[key] for key in loaded}
    except FileNotFoundError as error:
        raise VocabularyError(f"{source}: there is no such file. Check the path.") from error
    except VocabularyError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib say nowhere what they raise for damaged files
        raise VocabularyError(f"{source} is not an array file of numbers, or is damaged ({error!s:.120}).") from error


def _checked_rows(array: np.ndarray, source: Path, *, leading: bool) -> FloatArray:
    """Float32 (n_cls, 512), from that shape or, with `leading`, from (1, n_cls, 512)."""
    wanted = f"float32 (1, n_cls, {EMBED_DIM})" if leading else f"float32 (n_cls, {EMBED_DIM})"
    shape = array.shape[1:] if leading and array.shape[:1] == (1,) else array.shape
    if array.dtype != np.float32 or len(shape) != 2 or shape[1] != EMBED_DIM or array.ndim != 2 + leading:
        raise VocabularyError(
            f"{source}: embeddings must be {wanted}, from CLIP ViT-B/32. Received: {array.dtype} {array.shape}."
        )
    return array.reshape(shape)  # (n_cls, 512)


def _read_texts(path: Path) -> list[str]:
    """The first text of each class, which AILab's tools use."""
    try:
        classes = parse_json(regular_bytes(path, MAX_METADATA_BYTES).decode("utf-8"))
    except FileNotFoundError as error:
        raise VocabularyError(f"No class names: there is no {path}. Name the JSON file with --classes.") from error
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{path} is not a readable JSON file ({error!s:.120}).") from error
    if not isinstance(classes, list) or not all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in classes
    ):
        raise VocabularyError(f'{path} must hold class names in this form: [["person"], ["bicycle"], ...].')
    if any(len(texts) > 1 for texts in classes):
        logger.info("%s: only the first text of each class has an embedding, and it becomes the name.", path)
    return [texts[0] for texts in classes]


def _check_count(names: Sequence[str], rows: FloatArray, places: str) -> None:
    if len(names) != len(rows):
        raise VocabularyError(
            f"{places} must have the same number of classes. Received: {len(names)} names, {len(rows)} rows."
        )


def _normalised(rows: FloatArray, source: Path) -> FloatArray:
    """Rows of unit norm, from rows whose norm is nearly 1."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)  # (n_cls, 1)
    if not (np.abs(norms - 1) <= MAX_NORM_ERROR).all():
        raise VocabularyError(
            f"{source}: --normalise takes norms within {MAX_NORM_ERROR} of 1. Received: {norms.min():.4g} to "
            f"{norms.max():.4g}. Give text embeddings for YOLO-World."
        )
    return (rows / norms).astype(np.float32)  # (n_cls, 512)


def _check_tower(vocabulary: Vocabulary, original: Vocabulary, source: Path, model: str | None) -> None:
    """Refuse other embeddings of names in `original`: they are from another tower, or tuned."""
    row_of = {name: row for row, name in enumerate(original.names)}
    shared = [row for row, name in enumerate(vocabulary.names) if name in row_of and not vocabulary.is_background[row]]
    if not shared and model is not None:
        raise VocabularyError(
            f"{source} was saved for {model!r}, and shares no name with the original vocabulary by which to see "
            "whether its text tower is the same. Save it with such a class, or give --kind learned if you know it is."
        )
    if not shared:
        logger.info(
            "%s shares no name with the original vocabulary, so its text tower was not checked.",
            source,
        )
        return
    for row in shared:
        name, theirs = vocabulary.names[row], vocabulary.embeddings[row]  # (1, 512)
        cosine = float((original.embeddings[row_of[name]] @ theirs.T).max())
        if not cosine > MIN_COSINE:
            raise VocabularyError(
                f"{source}: {name!r} has a cosine of {cosine:.4f} to its embedding in the original vocabulary; with "
                f"the same text tower, it is above {MIN_COSINE}. Use that tower, or --kind learned if they were tuned."
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
