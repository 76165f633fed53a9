"""The format of vocabulary files: safetensors with one key of metadata. `Vocabulary` gives the values their meaning.

Whatever the format does not name is refused: another version, key, tensor or type.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from prompt_tune.errors import VocabularyError
from prompt_tune.files import read_tensors, tensor_bytes

GRAPH_FILE = "detector.onnx"  # this and the next two: names of files in a bundle
ORIGINAL_FILE = "original.vocab.safetensors"
LEARNED_FILE = "learned.vocab.safetensors"
INPUTS_FILE = "inputs.npz"  # beside a graph with slots: the vocabularies as it takes them
KITS = ("python", "web", "annotation")  # the folders of its deployment kit, without subfolders
BUNDLE_PARTS = (GRAPH_FILE, ORIGINAL_FILE, LEARNED_FILE)  # what detects
FORMAT_VERSION = 2  # the newest
MAX_FILE_BYTES = 2**31 + 2**28  # 2 GiB of embeddings (see `checks.MAX_ROWS`), and the rest
FIELDS = {"names", "kind", "guide_mode", "detector", "text_tower", "guide", "provenance"}
CONTENT = "content"  # optional: the digest of all that inference uses, see `content_digest`
BACKGROUND = "background"  # optional: the rows that are no class, see `background`
DIGESTED = ("names", "kind", "guide_mode", "detector", "text_tower", "guide", BACKGROUND)  # in this order; all tensors
REQUIRED_TENSORS = {"embeddings", "thresholds"}
OPTIONAL_TENSORS = {"calibration", "nms_iou", "box_offsets"}
# what an older reader would drop, by the first version that has it: it must refuse the file
SINCE = {"box_offsets": 2, CONTENT: 2, BACKGROUND: 2}


class Provenance(TypedDict, total=False):
    """What is known of how a vocabulary was made: no times, no paths. A file may hold other keys, so check types.

    Attributes:
        prompt_tune: Version of prompt-tune, from `fit`.
        torch: Version of torch, from `fit` and `pretrain`.
        versions: Version by package, from `vocab build`.
        settings: The settings of `fit`, as `FitConfig.as_json` gives them.
        seed: Of `pretrain`; that of `fit` is in `settings`.
        detector_steps: Training steps of `pretrain`.
        epoch: The epoch that was kept, from 1.
        val_ap: COCO's AP of that epoch on the validation images, in 0..1.
        val_ap50: The same at IoU 0.5.
        train_ap50: The same on training images.
        unlearned: AP and AP50 of the plain names and of the best template on the validation images; see `Baseline`.
        held_out: Number of validation images that were held out of the training images; 0.1.0 did not say so.
        nms_iou: The overlap above which a box is suppressed, in 0..1, chosen on the validation images or set.
        train_images: Number of training images, without replayed ones.
        replay_images: Number of replayed images among the training images.
        val_images: Number of validation images, without replayed ones.
        cross_validated: If there were too few images to hold some out, so that all were trained on: the number of
            folds of the cross-validation, or 1 if no class is shown by two pictures, so that training images were
            measured. `val_images` then are the training images.
        tiled: With `fit --tile`: `tile` and `overlap`, the `slices` of so many `photos` that were trained or measured
            on, and the slices without an object that were `left_out`. AP is then that of sliced detection.
        boxes: By class name, the labelled `objects` of training images from which its box offsets come, and their mean
            IoU with boxes before (`iou_before`) and after (`iou_after`), moved by the offsets of other images.
        thresholds: `rule`, in words, and `expected`: precision and recall by class name.
        carried: `names` of the classes kept from an earlier run, and `from`, the digest of its vocabulary.
        merged: `digest` and `provenance` of each vocabulary that was merged.
        converted: `format`, `sha256` and `normalised` of the foreign file that was read.
        prompts: SHA-256 (hex) of the prompts file that `vocab build` used.
        label: The label that `export --name` gave.
        metrics: Further figures by name.
    """

    prompt_tune: str
    torch: str
    versions: dict[str, str]
    settings: dict[str, Any]
    seed: int
    detector_steps: int
    epoch: int
    val_ap: float
    val_ap50: float
    train_ap50: float
    unlearned: list[dict[str, Any]]
    held_out: int
    nms_iou: float
    train_images: int
    replay_images: int
    val_images: int
    cross_validated: int
    tiled: dict[str, float]
    boxes: dict[str, dict[str, float]]
    thresholds: dict[str, Any]
    carried: dict[str, Any]
    merged: list[dict[str, Any]]
    converted: dict[str, Any]
    prompts: str
    label: str
    metrics: dict[str, float]


def content_digest(fields: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """The digest of all that inference uses: it differs if a bit of the file's meaning does.

    SHA-256 (hex) of a JSON list in UTF-8, without spaces and with every character as it is, and then the tensors in
    the order of their names, as little-endian float32 in C order. The list holds the values of `DIGESTED` that the
    file has (all but `background`, which is optional), then a list with a pair (name, shape) for each tensor, in the
    same order.
    """
    order = sorted(tensors)
    head = [
        *(fields[name] for name in DIGESTED if name in fields),
        [[name, list(tensors[name].shape)] for name in order],
    ]
    digest = hashlib.sha256(json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    for name in order:
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").data)
    return digest.hexdigest()


def encode(fields: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """The content of a vocabulary file; equal arguments give equal bytes.

    A file that needs version 2 has a digest of its content. Any other has none, so that older readers can read it.

    Args:
        fields: A value for each of `FIELDS`, plain JSON, and one for `BACKGROUND` if there are such rows.
        tensors: Float32 arrays, named as in the format.

    Raises:
        VocabularyError: Names and provenance take more than 16 MiB.
    """
    try:
        version = _version({*tensors, *fields})
        content = {CONTENT: content_digest(fields, tensors)} if version >= SINCE[CONTENT] else {}
        return tensor_bytes(tensors, {"version": version, **fields, **content})
    except ValueError as error:
        raise VocabularyError(f"Too many names or too much provenance: {error}. Shorten them.") from error


def decode(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Fields and tensors of a vocabulary file.

    Returns:
        A value of any JSON type for each of `FIELDS` and, if the file has it, `BACKGROUND`; and the float32 tensors,
        of any shape.

    Raises:
        VocabularyError: The file is missing, damaged or of an unknown version, or something in it is missing or not
            part of the format, or its content has another digest than it says.
    """
    if not os.path.exists(path):
        raise VocabularyError("there is no such file. Check the path.")
    if not os.path.isfile(path):
        raise VocabularyError("a vocabulary is a .vocab.safetensors file, and this is not a file.")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise VocabularyError(f"a vocabulary file has at most {MAX_FILE_BYTES} bytes. Received: {size}.")
    try:
        fields, tensors = read_tensors(path, _check)
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{error}. Copy or build the file again.") from error
    del fields["version"]
    if CONTENT in fields and fields.pop(CONTENT) != content_digest(fields, tensors):
        raise VocabularyError(
            "its content does not have the digest that it states: it was damaged or changed. Copy or build the file "
            "again."
        )
    return fields, tensors


def _check(fields: dict[str, Any], tensors: set[str]) -> None:
    """Refuse other versions, and fields and tensors that the format does not have."""
    if "version" not in fields:
        raise VocabularyError("its metadata has no `version`. Copy or build the file again.")
    version = fields["version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise VocabularyError(
            f"format version {version!r:.50}; this prompt-tune reads versions 1 and {FORMAT_VERSION}. Update "
            "prompt-tune."
        )
    if missing := sorted(FIELDS - fields.keys()):
        raise VocabularyError(f"its metadata lacks {', '.join(missing)}. Build the file again.")
    if unknown := sorted(fields.keys() - FIELDS - {"version", CONTENT, BACKGROUND}):
        raise VocabularyError(f"its metadata has unknown keys: {unknown}. Update prompt-tune.")
    if missing := sorted(REQUIRED_TENSORS - tensors):
        raise VocabularyError(f"it lacks the tensors {', '.join(missing)}. Build the file again.")
    if unknown := sorted(tensors - REQUIRED_TENSORS - OPTIONAL_TENSORS):
        raise VocabularyError(f"it has unknown tensors: {unknown}. Update prompt-tune.")
    if version != (needed := _version({*tensors, *fields})):
        raise VocabularyError(
            f"format version {version}, but with its {'background rows' if BACKGROUND in fields else 'tensors'} a file "
            f"has version {needed}. Build the file again."
            if CONTENT not in fields
            else f"format version {version}, but a file with a `{CONTENT}` digest has version {needed}. Build it again."
        )


def _version(parts: Iterable[str]) -> int:
    """The version of a file with these tensors and keys: the lowest that has them all."""
    return max(SINCE.get(name, 1) for name in parts)
