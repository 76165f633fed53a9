"""The format of vocabulary files: a safetensors file with one metadata key. What it holds means nothing here.

Whatever the format does not name is refused: another version, another key, another tensor, another type.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import VocabularyError

GRAPH_FILE = "detector.onnx"
ORIGINAL_FILE = "original.vocab.safetensors"
LEARNED_FILE = "learned.vocab.safetensors"
FORMAT_VERSION = 1
MAX_METADATA_BYTES = 2**24  # 16 MiB; safetensors reads headers up to 100 MB
MAX_FILE_BYTES = 2**31 + 2**28  # 2 GiB of embeddings (see `vocabulary.MAX_ROWS`), and what goes with them
FIELDS = {"names", "kind", "guide_mode", "detector", "text_tower", "guide", "provenance"}
REQUIRED_TENSORS = {"embeddings", "thresholds"}
OPTIONAL_TENSORS = {"calibration", "nms_iou"}


class Provenance(TypedDict, total=False):
    """What is known of how a vocabulary was made: no times, no paths. A file may hold other keys, so check types.

    Attributes:
        prompt_tune: Version of prompt-tune, from `fit`.
        torch: Version of torch, from `fit` and `pretrain`.
        versions: Version by package, from `vocab build`.
        settings: The settings of `fit`, as `FitConfig.as_json` gives them.
        seed: Of `pretrain`; that of `fit` is in `settings`.
        detector_steps: Training steps of `pretrain`.
        epoch: The best epoch, from 1.
        val_ap: COCO's AP of that epoch on the validation images, in 0..1.
        val_ap50: The same at IoU 0.5.
        nms_iou: The overlap above which a box is suppressed, in 0..1, chosen on the validation images or set.
        train_images: Number of training images, without replayed ones.
        replay_images: Number of replayed images among the training images.
        val_images: Number of validation images, without replayed ones.
        thresholds: `rule`, in words, and `expected`: precision and recall by class name.
        carried: `names` of the classes kept from an earlier run, and `from`, the digest of its vocabulary.
        merged: `digest` and `provenance` of each vocabulary that was merged.
        converted: `format`, `sha256` and `normalised` of the foreign file that was read.
        prompts: SHA-256 (hex) of the prompts file that `vocab build` used.
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
    nms_iou: float
    train_images: int
    replay_images: int
    val_images: int
    thresholds: dict[str, Any]
    carried: dict[str, Any]
    merged: list[dict[str, Any]]
    converted: dict[str, Any]
    prompts: str
    metrics: dict[str, float]


def encode(fields: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """The content of a vocabulary file; the same arguments give the same bytes.

    Args:    fields: a value for each of `FIELDS`, plain JSON.
             tensors: float32 arrays in C order, named as in the format.
    Raises:  VocabularyError: the metadata is over the limit.
    """
    metadata = json.dumps({"version": FORMAT_VERSION, **fields}, sort_keys=True, allow_nan=False)
    _check_metadata_size(metadata)
    return save(dict(tensors), metadata={METADATA_KEY: metadata})


def decode(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Fields and tensors of a vocabulary file.

    Returns: a value for each of `FIELDS`, of any JSON type; the float32 tensors, of any shape.
    Raises:  VocabularyError: the file is missing, damaged, of an unknown version, or has less or more than the format.
    """
    if not path.exists():
        raise VocabularyError("there is no such file. Check the path.")
    if not path.is_file():
        raise VocabularyError("a vocabulary is a .vocab.safetensors file, and this is not a file.")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise VocabularyError(f"a vocabulary file has at most {MAX_FILE_BYTES} bytes. Received: {size}.")
    try:
        with safe_open(path, framework="numpy") as file:
            return _parse_metadata(file.metadata()), _read_tensors(file)
    except (SafetensorError, OSError) as error:
        raise VocabularyError(f"not safetensors, or damaged or cut short ({error}). Copy or build it again.") from error


def _check_metadata_size(text: str) -> None:
    if len(text) > MAX_METADATA_BYTES:
        raise VocabularyError(
            f"Names and provenance must fit in {MAX_METADATA_BYTES} bytes of JSON. Received: {len(text)}. Shorten them."
        )


def _parse_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Fields of a `Vocabulary`, less the arrays, from the metadata of a file."""
    if not metadata or METADATA_KEY not in metadata:
        raise VocabularyError(f"not a vocabulary file: its metadata has no key `{METADATA_KEY}`.")
    if len(metadata) > 1:
        raise VocabularyError(f"the metadata must have the key `{METADATA_KEY}` alone. Received: {sorted(metadata)}.")
    text = metadata[METADATA_KEY]
    _check_metadata_size(text)
    try:
        fields = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"its metadata is not JSON ({error}). Copy or build the file again.") from error
    if not isinstance(fields, dict) or "version" not in fields:
        raise VocabularyError("its metadata must be a JSON object with a `version`. Copy or build the file again.")
    version = fields.pop("version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise VocabularyError(
            f"format version {version!r:.50}; this prompt-tune reads version {FORMAT_VERSION}. Update prompt-tune."
        )
    if missing := sorted(FIELDS - fields.keys()):
        raise VocabularyError(f"its metadata lacks {', '.join(missing)}. Build the file again.")
    if unknown := sorted(fields.keys() - FIELDS):
        raise VocabularyError(f"its metadata has unknown keys: {unknown}. Update prompt-tune.")
    return fields


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key stands twice")
    return keys


def _read_tensors(file: Any) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of an open safetensors file, which must be those of the format, in float32."""
    found = set(file.keys())
    if missing := sorted(REQUIRED_TENSORS - found):
        raise VocabularyError(f"it lacks the tensors {', '.join(missing)}. Build the file again.")
    if unknown := sorted(found - REQUIRED_TENSORS - OPTIONAL_TENSORS):
        raise VocabularyError(f"it has unknown tensors: {unknown}. Update prompt-tune.")
    for name in sorted(found):
        dtype = file.get_slice(name).get_dtype()
        if dtype != "F32":
            raise VocabularyError(f"`{name}` must be float32 (F32). Received: {dtype}.")
    return {name: file.get_tensor(name) for name in found}
