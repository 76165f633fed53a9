"""Vocabulary files, read with NumPy: part of the program `detect.py`. `read_vocabulary` shows their format."""

import hashlib
import json
import math
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

NEEDED = ("names", "kind", "guide_mode", "detector", "text_tower", "guide")
DIGESTED = (*NEEDED, "background")  # in the digest of the content
MAX_FILE_BYTES = 2**31 + 2**28
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # they turn the direction of text


@dataclass(frozen=True)
class Vocabulary:
    """The content of a vocabulary file."""

    label: str
    about: dict[str, Any]  # names, kind, guide_mode, and digests: detector, text_tower, guide
    embeddings: np.ndarray  # (n_cls, n_prompts, 512)
    thresholds: np.ndarray  # (n_cls,)
    calibration: np.ndarray  # (n_cls, 2): scale and shift of the logit
    nms_iou: np.ndarray  # (n_cls,): a class's own limit of overlap, applied after the graph's
    box_offsets: np.ndarray  # (n_cls, 4): how far edges of the class's boxes move, in shares of width and height
    hidden: np.ndarray  # (n_cls,) bool: background rows, which guide and score and are never shown


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary file. One that breaks a rule of the format ends the program with a line that says which."""
    try:
        need(path.stat().st_size <= MAX_FILE_BYTES and path.is_file(), "it must be a file of at most 2.25 GiB")
        about, tensors = read_file(path.read_bytes())
        check_origin(about)
        check_values(about, tensors)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = error if type(error) is ValueError else "not a vocabulary file, or damaged or cut short"
        raise SystemExit(f"{path}: {reason}. Copy or build the file again.") from error
    n_cls = len(about["names"])
    unchanged = np.tile(np.array([1, 0], np.float32), (n_cls, 1))  # (n_cls, 2)
    return Vocabulary(
        path.name.removesuffix(".vocab.safetensors"),
        about,
        tensors["embeddings"],
        tensors["thresholds"],
        tensors.get("calibration", unchanged),
        tensors.get("nms_iou", np.ones(n_cls, np.float32)),
        tensors.get("box_offsets", np.zeros((n_cls, 4), np.float32)),
        np.isin(about["names"], [name for name, _ in about.get("background", [])]),
    )


def read_labelled(place: Path | str, taken: set[str]) -> Vocabulary:
    """The vocabulary of a file or of NAME=FILE. All runs call theirs learned.vocab.safetensors: see `label` there."""
    name, equals, file = str(place).partition("=")
    if not equals or "/" in name or "\\" in name or Path(place).exists():
        name, file = "", str(place)
    elif not is_label(name):
        raise SystemExit(f"{place}: this cannot be a label; give another NAME.")
    vocabulary = read_vocabulary(Path(file))
    label = name or vocabulary.label
    if not name and Path(file).name == "learned.vocab.safetensors":
        given = vocabulary.about["provenance"].get("label")
        label = given if isinstance(given, str) and is_label(given) else label
        label = Path(os.path.abspath(file)).parent.name or label if label in taken else label
    return replace(vocabulary, label=label)


def is_label(name: str) -> bool:
    """Whether a vocabulary can have this label: not blank, and no control characters."""
    odd = {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}
    return bool(name.strip()) and name != "original" and not odd and not TURNING.search(name)


def read_file(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors: 8 bytes with the size of the header, a JSON header, raw little-endian float32."""
    start = 8 + int.from_bytes(data[:8], "little")
    need(8 < start <= len(data) and data[8:9] == b"{", "not a vocabulary file, or cut short")
    header = strict_json(data[8:start].decode())
    metadata = header.pop("__metadata__")
    need(set(metadata) == {"prompt-tune"}, "its metadata must have the one key prompt-tune")
    need(len(metadata["prompt-tune"]) <= 2**24, "more than 16 MiB of metadata")
    about = strict_json(metadata["prompt-tune"])
    version = about["version"]
    known = type(version) is int and version in (1, 2)
    need(known, f"format version {version!r:.50}; this program reads versions 1 and 2")
    keys = {*NEEDED, "version", "provenance"}
    need(about.keys() - {"content", "background"} == keys, "keys are missing or unknown")
    n_cls, n_prompts = len(about["names"]), header["embeddings"]["shape"][1]
    need(type(n_prompts) is int and n_prompts > 0 and n_cls * n_prompts <= 2**20, "wrong shapes")
    shapes = {"embeddings": [n_cls, n_prompts, 512], "thresholds": [n_cls]}
    shapes |= {"calibration": [n_cls, 2], "nms_iou": [n_cls], "box_offsets": [n_cls, 4]}
    need({"thresholds"} <= header.keys() <= shapes.keys(), "tensors are missing or unknown")
    second = about.keys() & {"content", "background"} or "box_offsets" in header
    need(version == 1 + bool(second), "its version does not go with its parts")
    tensors, begin = {}, 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        end = begin + 4 * math.prod(shapes[name])
        entry = {"data_offsets": [begin, end], "dtype": "F32", "shape": shapes[name]}
        whole = json.dumps(header[name], sort_keys=True) == json.dumps(entry) and start + end <= len(data)
        need(whole, f"{name} must be float32 {shapes[name]}, whole, and without a gap after the tensor before")
        tensors[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(shapes[name])
        begin = end
    need(start + begin == len(data), "more data than its tensors")
    return about, tensors


def check_origin(about: dict[str, Any]) -> None:
    """Refuse names, kinds and digests that are unknown or do not go together."""
    names = about["names"]
    need(isinstance(names, list) and names and all(isinstance(name, str) for name in names), "names must be texts")
    need(all(name.strip() for name in names) and len(set(names)) == len(names), "a name is empty or stands twice")
    odd = {unicodedata.category(character) for character in "".join(names)} & {"Cc", "Cs", "Zl", "Zp"}
    need(not odd, "a name has control characters")
    need(about["kind"] in ("original", "learned", "plain"), "unknown kind")
    if "background" in about:  # rows that guide and score and are never shown: pairs of a name and what was encoded
        pairs = about["background"]
        texts = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        need(texts and all(isinstance(part, str) for pair in pairs for part in pair), "background must be pairs")
        odd = {unicodedata.category(one) for _, text in pairs for one in text} & {"Cc", "Cs", "Zl", "Zp"}
        marked = [name for name, _ in pairs]
        known = set(marked)
        in_order = [name for name in names if name in known]
        need(not odd and marked == in_order, "background must name rows in their order")
        need(0 < len(marked) < len(names) and about["kind"] == "original", "it cannot have this background")
    need(about["guide_mode"] in ("original", "own"), "unknown guide mode")
    for what in ("detector", "text_tower", "guide"):
        any_detector = what == "detector" and about["kind"] == "plain" and about[what] == ""
        need(any_detector or re.fullmatch("[0-9a-f]{64}", about[what]), f"{what} is not a digest")
    need(isinstance(about["provenance"], dict), "provenance must be an object")


def check_values(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Refuse numbers outside their ranges, NaN among them, and digests that are not those of the tensors."""
    embeddings, thresholds = tensors["embeddings"], tensors["thresholds"]
    norms = np.sqrt(np.einsum("cpd,cpd->cp", embeddings, embeddings, dtype=np.float64))
    need((np.abs(norms - 1) <= 1e-4).all(), "embeddings must have unit length")
    need(((thresholds >= 0) & (thresholds <= 1)).all(), "thresholds must be from 0 to 1")
    if (calibration := tensors.get("calibration")) is not None:
        need(np.isfinite(calibration).all() and (calibration[:, 0] > 0).all(), "wrong calibration")
    if (nms_iou := tensors.get("nms_iou")) is not None:
        need(((nms_iou > 0) & (nms_iou <= 1)).all(), "nms_iou must be above 0 and at most 1")
    if (offsets := tensors.get("box_offsets")) is not None:
        need((np.abs(offsets) <= np.float32(0.4)).all(), "box_offsets must be from -0.4 to 0.4")
        need(about["kind"] != "original", "an original vocabulary has no box_offsets")
    if about["kind"] == "original" or about["guide_mode"] == "own":
        need(about["guide"] == hashlib.sha256(embeddings.tobytes()).hexdigest(), "guide must be its own digest")
    if "content" in about:
        shapes = [[name, list(tensors[name].shape)] for name in sorted(tensors)]
        head = [*(about[key] for key in DIGESTED if key in about), shapes]
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        digest = hashlib.sha256(b"".join([text, *(tensors[name].tobytes() for name in sorted(tensors))]))
        need(about["content"] == digest.hexdigest(), "damaged or changed: its content has not the digest it states")


def strict_json(text: str) -> Any:
    """JSON without keys that stand twice, numbers that are not finite, or more than 300 levels."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), "a key stands twice")
        return dict(pairs)

    def finite(number: str) -> int | float:
        need(math.isfinite(float(number)), f"a number is not finite: {number:.20}")
        return int(number) if number.isdigit() else float(number)

    value = json.loads(text, object_pairs_hook=unique, parse_int=finite, parse_float=finite, parse_constant=finite)
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, (dict, list))]:
        need((depth := depth + 1) <= 300, "nested too deep")
        level = [inner for part in level for inner in (part.values() if isinstance(part, dict) else part)]
    return value


def need(holds: object, reason: str) -> None:
    """Raises ValueError if something does not hold."""
    if not holds:
        raise ValueError(reason)
