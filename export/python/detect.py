"""Runs a bundle of `prompt-tune export` with NumPy, Pillow and ONNX Runtime: one file to read, copy or translate.

    pip install numpy pillow onnxruntime
    python detect.py photo.jpg --draw results

Prints JSON. The detections are the same as those of `prompt-tune detect` on the CPU. `read_vocabulary` shows the format
of vocabulary files.
"""

import argparse
import ctypes
import hashlib
import importlib
import io
import json
import logging
import math
import os
import re
import stat
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

NEEDED = ("names", "kind", "guide_mode", "detector", "text_tower", "guide")
DIGESTED = (*NEEDED, "background")  # in the digest of the content
MAX_FILE_BYTES = 2**31 + 2**28
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # they turn the direction of text
PAD_GREY = 114
LEAST_SCORE = 0.001  # thresholds of learned vocabularies let nothing below through
SAME_BOX_IOU = 0.7  # an original and a learned box that overlap by this or more are on the same object
MOST_SCORES = 2**29  # of an image, one for each prompt and anchor: 2 GiB, and several times that while it is computed
IOU = 0.7  # the graph drops a box that overlaps a better one of its class by more than this
ROUNDING = 1e-5  # the inverse of a calibration rounds, so the graph's threshold is lowered by this share
COLOURS = {True: "#9fb3c8", False: "#ff7a1a"}  # of original and learned classes
MOST_INSET = 8  # equal boxes that are drawn inside one another
WRITTEN = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # suffixes of drawings; else .png is added
OTHERS = ".apng .avif .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpf .jpx .mpo .pbm .pgm .pnm .ppm"
READ = {*WRITTEN, *OTHERS.split()}  # suffixes of the pictures that are looked for in a folder
HEIC = {".heic", ".heif", ".hif"}
NAMED = (  # camera raw, vector graphics, files of image editors, other formats
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
    ".sr2 .srf .srw .x3f .ai .eps .svg .svgz .afphoto .kra .ora .psb .psd .xcf .bpg .cur .dcm .dds .dib .emf .exr "
    ".fits .flif .hdr .icns .ico .jls .jxl .jxr .pcx .pfm .qoi .ras .sgi .tga .wdp .wmf .xbm .xpm"
)
UNREAD = {*NAMED.split()}  # suffixes of pictures that are not read, but named
# Pillow knows more formats, and gives PostScript to Ghostscript, which runs it
FORMATS = ["AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"]
try:
    importlib.import_module("pillow_heif").register_heif_opener()
    READ |= HEIC
except ImportError:
    UNREAD |= HEIC
MOST_TIMES = 100  # that one folder is read, where links lead to it
METADATA = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
MAX_MEGAPIXELS = 500  # reading takes up to 21 bytes of memory a pixel
LIMIT_VARIABLE = "PROMPT_TUNE_MAX_MEGAPIXELS"  # in the environment: another limit
Turn = Image.Transpose
TURNS = {  # EXIF orientation -> what turns the stored pixels upright
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


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


class Detector:
    """The graph of a bundle, its original vocabulary and any learned ones."""

    def __init__(self, bundle: Path, learned: list[Path | str]) -> None:
        """Load everything; exit with a message if a vocabulary was made for something else."""
        self.session, self.graph = open_graph(bundle / "detector.onnx")
        self.original = read_vocabulary(bundle / "original.vocab.safetensors")
        self.learned: list[Vocabulary] = []
        for place in learned:
            self.learned.append(read_labelled(place, {part.label for part in self.learned}))
        check_together(self.original, self.learned, self.graph)

    def detect(self, image: Image.Image, conf: float | None = None, overlap: str = "keep") -> list[dict[str, Any]]:
        """Detections in an upright RGB image, with boxes in its pixels; `conf` replaces the classes' thresholds.

        `overlap` other than "keep" adds `hidden`: true for one of an original and a learned box on the same object.
        """
        placed = letterbox(image, self.graph["image_size"])
        images = network_input(placed.pixels[None])
        found = []
        for guide, learned in passes(self.original, self.learned):
            for group, rows in zip((guide, learned), self._run(images, guide, learned, conf), strict=True):
                found += detections(rows, group, placed, conf)
        if overlap != "keep":
            hidden = self._hidden(found, overlap)
            for row, one in enumerate(found):
                one["hidden"] = row in hidden
        return found

    def _hidden(self, found: list[dict[str, Any]], overlap: str) -> set[int]:
        """The rows that another box on the same object hides: see docs/detecting.md of prompt-tune."""
        parts = {part.label: part for part in (self.original, *self.learned)}
        limits = [float(parts[one["vocabulary"]].thresholds[one["class_id"]]) for one in found]
        pairs = zip(found, limits, strict=True)
        margins = [(one["score"] - limit) / max(1 - limit, 1e-9) for one, limit in pairs]
        boxes = np.array([one["box_xyxy"] for one in found], np.float32).reshape(-1, 4)
        originals = [row for row, one in enumerate(found) if one["vocabulary"] == "original"]
        learned = [row for row, one in enumerate(found) if one["vocabulary"] != "original"]
        theirs, rivals = boxes[originals], {row: set[int]() for row in range(len(found))}
        for row in learned:
            offsets = parts[found[row]["vocabulary"]].box_offsets[found[row]["class_id"]]
            sizes = np.tile(theirs[:, 2:] - theirs[:, :2], 2)
            drawn = np.where(offsets == 0, theirs, theirs + offsets * sizes)  # as this class draws them
            for place in np.flatnonzero(overlaps(boxes[row : row + 1], drawn) >= SAME_BOX_IOU):
                rivals[row].add(originals[place])
                rivals[originals[place]].add(row)
        if overlap == "learned":
            return {other for row in learned if margins[row] > 0 for other in rivals[row]}
        hidden: set[int] = set()
        for row in sorted(range(len(found)), key=lambda row: (-margins[row], row in originals)):  # the surest first
            hidden |= set() if row in hidden else rivals[row]
        return hidden

    def _run(
        self, images: np.ndarray, original: list[Vocabulary], learned: list[Vocabulary], conf: float | None
    ) -> Any:
        """Run the graph: two tables (n, 7) of image index, x1, y1, x2, y2 in pixels of the input, score, class."""
        numbers = (IOU, graph_conf(original, conf), graph_conf(learned, conf))
        feed = {"images": images, "original": packed(original), "learned": packed(learned)}
        for name, value in zip(("iou", "original_conf", "learned_conf"), numbers, strict=True):
            feed[name] = np.array([value], np.float32)
        try:
            tables = self.session.run(["original_detections", "learned_detections"], feed)
            for rows, group in zip(tables, (original, learned), strict=True):
                n_cls = sum(len(part.thresholds) for part in group)
                whole = rows.shape[1] == 7 and ((rows[:, 6] >= 0) & (rows[:, 6] < n_cls)).all()
                need(whole, "its rows are not those of a graph of prompt-tune")
        except Exception as error:  # the errors of ONNX Runtime have no common base but Exception
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise SystemExit(f"detector.onnx fails: {reason}. Export the run again.") from error
        return tables


def check_together(original: Vocabulary, learned: list[Vocabulary], graph: dict[str, Any]) -> None:
    """End the program with a line if a vocabulary is of the wrong kind, made for something else or one too many."""
    labels = [vocabulary.label for vocabulary in (original, *learned)]
    for vocabulary in (original, *learned):
        about = vocabulary.about
        if (about["kind"] == "original") != (vocabulary is original):
            kinds = "original" if vocabulary is original else "learned or plain"
            raise SystemExit(f"{vocabulary.label}: of kind {about['kind']}; it must be {kinds}.")
        wanted = {"detector": graph["detector"], "text_tower": original.about["text_tower"]}
        if about["kind"] == "plain" and about["detector"] == "":
            del wanted["detector"]  # made for any detector
        if about["kind"] == "learned" and about["guide_mode"] == "original":
            wanted["guide"] = original.about["guide"]
        for what, digest in wanted.items():
            if about[what] != digest:
                raise SystemExit(f"{vocabulary.label}: made for another {what} ({about[what][:12]}).")
        if labels.count(vocabulary.label) > 1:
            raise SystemExit(f"{vocabulary.label}: two vocabularies have this name; give one another: NAME=FILE.")
    if n_scores(original, learned, graph) > MOST_SCORES:
        raise SystemExit("The vocabularies have too many prompts for the memory. Give fewer of them.")


def open_graph(path: Path) -> tuple[Any, dict[str, Any]]:
    """The graph in ONNX Runtime, and its metadata, of which a forged graph could state anything."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
    import onnxruntime  # not above: a Triton server runs the graph itself, and needs only the rest of this file

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        path.stat()  # a file that is missing is an OSError
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        about = strict_json(session.get_modelmeta().custom_metadata_map["prompt-tune"])
        need(type(about["version"]) is int and about["version"] == 1, "it is of another version")
        need(re.fullmatch("[0-9a-f]{64}", about["detector"]), "detector is not a digest")
        strides, size, counts = about["strides"], about["image_size"], [about["image_size"], *about["strides"]]
        need(all(type(count) is int and count > 0 for count in counts), "sizes must be counts")
        need(strides == sorted(set(strides)) and len(strides) <= 8 and strides[-1] <= 256, "strides cannot be")
        need(all(stride & (stride - 1) == 0 for stride in strides), "strides must be powers of two")
        need(size <= 8192 and size % strides[-1] == 0, "image_size cannot be")
        need(json.dumps(about.get("embed_dim", 512)) == "512", "embed_dim must be 512")
        need(about.get("precision", "float32") in ("float32", "float16"), "unknown precision")
    except OSError:
        raise
    except Exception as error:  # the errors of ONNX Runtime have no common base but Exception
        reason = f" ({error})" if type(error) is ValueError else ""
        raise SystemExit(f"{path}: not a graph of prompt-tune, or damaged{reason}. Export the run again.") from error
    return session, about


def passes(original: Vocabulary, learned: list[Vocabulary]) -> list[tuple[list[Vocabulary], list[Vocabulary]]]:
    """Which vocabularies go through the graph together: those that guide it, and those that only ask for scores."""
    together = [part for part in learned if part.about["guide_mode"] == "original"]
    # a vocabulary that guides the network itself needs its own pass
    return [([original], together), *(([part], []) for part in learned if part.about["guide_mode"] == "own")]


def packed(group: list[Vocabulary]) -> np.ndarray:
    """Several vocabularies as one input (n_cls, n_prompts, 512). Prompts are repeated up to the largest number."""
    n_prompts = max((part.embeddings.shape[1] for part in group), default=1)
    parts = [part.embeddings[:, np.arange(n_prompts) % part.embeddings.shape[1]] for part in group]
    return np.concatenate([np.zeros((0, n_prompts, 512), np.float32), *parts])  # (n_cls, n_prompts, 512)


def n_rows(group: list[Vocabulary]) -> int:
    """Rows of a packed group."""
    return sum(len(part.thresholds) for part in group) * max((part.embeddings.shape[1] for part in group), default=1)


def n_scores(original: Vocabulary, learned: list[Vocabulary], graph: dict[str, Any]) -> int:
    """Scores of one image in the largest pass."""
    anchors = sum((graph["image_size"] // stride) ** 2 for stride in graph["strides"])
    return max(n_rows(guide) + n_rows(beside) for guide, beside in passes(original, learned)) * anchors


def detections(
    rows: np.ndarray, group: list[Vocabulary], placed: "Letterboxed", conf: float | None, iou: float | None = None
) -> list[dict[str, Any]]:
    """What the rows (n, 7) of one image mean, in pixels of the image; `iou` replaces the classes' limits of overlap."""
    rows = moved(rows, np.concatenate([np.zeros((0, 4), np.float32), *(part.box_offsets for part in group)]))
    if iou is None:
        rows = distinct(rows, np.concatenate([np.ones(0, np.float32), *(part.nms_iou for part in group)]))
    boxes = (rows[:, 1:5] - np.array([placed.left, placed.top] * 2, np.float32)) / np.float32(placed.scale)
    boxes = np.clip(boxes, 0, np.array(placed.size * 2, np.float32))
    found = []
    for box, row in zip(boxes, rows, strict=True):
        vocabulary, index = locate(group, int(row[6]))
        score = calibrated(row[5], vocabulary.calibration[index])
        limit = vocabulary.thresholds[index] if conf is None else np.float32(conf)
        if score > limit and not vocabulary.hidden[index] and (box[2:] > box[:2]).all():
            found.append(
                {
                    "vocabulary": vocabulary.label,
                    "class": vocabulary.about["names"][index],
                    "class_id": index,
                    "score": float(score),
                    "box_xyxy": [float(value) for value in box],
                }
            )
    return found


def locate(group: list[Vocabulary], index: int) -> tuple[Vocabulary, int]:
    """The vocabulary of class `index` in a packed group, and its row there."""
    for part in group:
        if index < len(part.thresholds):
            return part, index
        index -= len(part.thresholds)
    raise IndexError(index)


def moved(rows: np.ndarray, box_offsets: np.ndarray) -> np.ndarray:
    """The rows (n, 7) of one image, with boxes as the labels of their class are drawn; zeros keep a box as it is."""
    offsets = box_offsets[rows[:, 6].astype(int)]  # (n, 4): left, top, right, bottom edge
    sizes = np.tile(rows[:, 3:5] - rows[:, 1:3], 2)  # (n, 4): width, height, width, height
    boxes = np.where(offsets == 0, rows[:, 1:5], rows[:, 1:5] + offsets * sizes)
    return np.concatenate([rows[:, :1], boxes, rows[:, 5:]], axis=1)


def distinct(rows: np.ndarray, nms_iou: np.ndarray) -> np.ndarray:
    """The rows (n, 7) of one image, without boxes that overlap a better one of the class by more than its limit."""
    kept = [rows[:0]]
    for part in np.split(rows, np.flatnonzero(np.diff(rows[:, 6])) + 1):  # the graph sorts by class, the best first,
        limit = nms_iou[int(part[0, 6])] if len(part) else 1  # and gives at most 300 of each
        while limit < 1 and len(part):
            best, part = part[:1], part[1:]
            part = part[overlaps(best[:, 1:5], part[:, 1:5]) <= limit]
            kept.append(best)
        kept.append(part)
    return np.concatenate(kept)


def overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (1, 4) with others (n, 4): x1, y1, x2, y2."""
    one, others = one.astype(np.float64), others.astype(np.float64)
    shared = np.maximum(np.minimum(one[:, 2:], others[:, 2:]) - np.maximum(one[:, :2], others[:, :2]), 0).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def graph_conf(group: list[Vocabulary], conf: float | None) -> float:
    """The lowest uncalibrated score that can count; 1, which no score exceeds, where there are no classes."""
    lowest = 1.0
    for part in group:
        limits = part.thresholds if conf is None else np.full(len(part.thresholds), conf, np.float32)
        calibration = part.calibration[~part.hidden].astype(np.float64)
        for limit, (scale, shift) in zip(limits[~part.hidden], calibration, strict=True):
            changed = (scale, shift) != (1, 0)
            needed = sigmoid((logit(limit) - shift) / scale) * (1 - ROUNDING) if changed else float(limit)
            lowest = min(lowest, needed)
    floor = conf is None and not any(part.about["kind"] == "original" for part in group)
    return max(lowest, LEAST_SCORE) if floor else lowest


def calibrated(score: np.float32, calibration: np.ndarray) -> np.float32:
    """The score with its logit scaled and shifted; (1, 0) leaves it as it is."""
    scale, shift = calibration.astype(np.float64)
    return score if (scale, shift) == (1, 0) else np.float32(sigmoid(scale * logit(score) + shift))


def logit(score: np.float32) -> float:
    """The logit of a score in 0..1."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.float64(score)) - np.log1p(-np.float64(score)))


def sigmoid(value: float) -> float:
    """The score of a logit, without overflow."""
    return float(np.exp(-np.logaddexp(0, -value)))


def turn_of(image: Image.Image) -> Any:
    """What turns the pixels upright, or None. Pillow turns a TIFF itself; a broken tag counts as none."""
    try:
        value = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)
    except Exception:  # Pillow raises errors of many classes
        return None
    return TURNS.get(value) if isinstance(value, int) else None


def max_megapixels() -> int:
    """The largest image that is read."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(MAX_MEGAPIXELS)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise ValueError(f"{LIMIT_VARIABLE} must be a whole number from 1 on, and is {text[:40]!r}")
    return int(text)


def quiet_libtiff() -> None:
    """Keep the library that reads TIFFs from writing of damaged ones on standard error: one line of ours is enough."""
    try:
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        handlers = library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
    except (AttributeError, OSError, TypeError):
        return  # not to be had from outside Pillow
    for set_handler in handlers:
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def read_image(source: Path | bytes) -> Image.Image:
    """A file, or its content, as upright RGB; 16-bit grey is reduced to 8 bits. Raises ValueError if it cannot be."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        limit = max_megapixels()
        # Pillow's own limit calls a telephone's photo of 200 megapixels an attack. It refuses twice what it is set to.
        Image.MAX_IMAGE_PIXELS = limit * 1_000_000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _upright_rgb(source, limit)
    except Exception as error:  # Pillow and the libraries below it raise errors of many classes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image of a known format" if unknown else getattr(error, "strerror", None) or str(error)
        if unknown and isinstance(source, Path) and source.suffix.lower() in HEIC:
            reason = "HEIC needs pip install pillow-heif"
        elif isinstance(error, MemoryError):
            reason = "it does not fit into the memory that is free"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"it has more than {2 * limit} megapixels; {limit} are read, or as many as {LIMIT_VARIABLE} says"
        reason = " ".join(reason.split())[:200] or type(error).__name__
        what = source if isinstance(source, Path) else f"What was sent ({len(source)} bytes)"
        raise ValueError(f"{what} cannot be read as an image: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device, which may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _upright_rgb(source: Path | bytes, limit: int) -> Image.Image:
    """See `read_image`; raises what the decoders raise."""
    if isinstance(source, Path) and is_special(source):
        raise ValueError("it is a pipe, a socket or a device, not a file")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    opened = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with opened as file, Image.open(file, formats=known) as image:  # by its name, some TIFFs would be garbled
        megapixels = image.width * image.height / 1_000_000
        if megapixels > limit:
            raise ValueError(
                f"it has {megapixels:.4g} megapixels; scale it down to at most {limit}, or set {LIMIT_VARIABLE}"
            )
        if not megapixels:
            raise ValueError("it has no pixels")
        image.load()  # a PNG may have its orientation behind its pixels
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no known range; save it with 8 bits")
        turn = turn_of(image)
        deep = image.mode.startswith("I;16")  # Pillow's own conversion would clip at 255
        rgb = (Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image).convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)


@dataclass(frozen=True)
class Letterboxed:
    """An image scaled to fit a square, and centred on grey."""

    pixels: np.ndarray  # uint8 (side, side, 3)
    scale: float
    left: int  # width of the border
    top: int
    size: tuple[int, int]  # width and height of the image


def letterbox(image: Image.Image, side: int) -> Letterboxed:
    """Scale an upright RGB image to fit a square, and centre it on grey."""
    size = image.size
    scale = min(side / image.height, side / image.width)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = round((side - width) / 2 - 0.1), round((side - height) / 2 - 0.1)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.full((side, side, 3), PAD_GREY, np.uint8)
    pixels[top : top + height, left : left + width] = np.asarray(image)
    return Letterboxed(pixels, scale, left, top, size)


def network_input(pixels: np.ndarray) -> np.ndarray:
    """Letterboxed images, uint8 (b, side, side, 3), as the graph takes them: float32 (b, 3, side, side) in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def load_font(file: Path | None, height: float) -> Any:
    """The font in a file, or Pillow's own, which has little more than English letters."""
    return ImageFont.truetype(file, height) if file else ImageFont.load_default(height)


def warn_of_boxes(names: list[str], file: Path | None) -> None:
    """Name the characters for which the font has no glyph: drawings show an empty box for each."""
    font = load_font(file, 32)

    def glyph(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    absent = glyph("\uffff")  # not a character: every font draws it as a missing one
    if missing := [one for one in sorted(set("".join(names))) if not one.isspace() and glyph(one) == absent]:
        say(f"The font cannot draw {' '.join(missing)}: give one that can as --font FILE.")


def apart(boxes: list[list[float]], step: float) -> list[list[float]]:
    """Boxes, the most important first, of which none hides another: one equal to an earlier one goes inside it."""
    drawn: list[list[float]] = []
    for box in boxes:
        for _ in range(MOST_INSET):
            smaller = [box[0] + step, box[1] + step, box[2] - step, box[3] - step]
            equal = any(max(abs(a - b) for a, b in zip(box, other, strict=True)) < step for other in drawn)
            if not equal or min(smaller[2] - smaller[0], smaller[3] - smaller[1]) < 2 * step:
                break
            box = smaller
        drawn.append(box)
    return drawn


def draw(image: Image.Image, found: list[dict[str, Any]], font_file: Path | None) -> Image.Image:
    """The picture with boxes: original classes thin and grey, learned ones thick and orange."""
    picture = image.copy()
    picture.info.pop("compression", None)  # of a TIFF: that of a fax takes no colours
    canvas, side = ImageDraw.Draw(picture), sum(image.size) / 2
    height = max(11, side / 42)
    font = load_font(font_file, height)
    shown = [one for one in found if not one.get("hidden")]
    order = sorted(shown, key=lambda one: (one["vocabulary"] != "original", one["score"]))
    thick = max(2, round(side / 200))
    for one, box in zip(order, apart([one["box_xyxy"] for one in order[::-1]], thick + 2)[::-1], strict=True):
        original = one["vocabulary"] == "original"
        x1, y1, x2, y2 = box
        canvas.rectangle(
            (x1, y1, x2, y2), outline=COLOURS[original], width=max(1, round(side / 500)) if original else thick
        )
        text, place = f"{one['class']} {one['score']:.2f}", (x1, max(0, y1 - 1.3 * height))
        canvas.rectangle(canvas.textbbox(place, text, font=font), fill=COLOURS[original])
        canvas.text(place, text, font=font, fill="black")
    return picture


def find(sources: list[Path], recursive: bool, without: Path | None) -> list[Path]:
    """The pictures that files and folders name; a line names those in formats that are not read, and broken links."""
    images, left_out = [], []
    above = (os.path.realpath(without),) if without else ()
    for source in sources:
        if not os.path.isdir(source):
            images.append(source)
            continue
        files = list(walk(source, (*above, os.path.realpath(source)), recursive))
        images += [path for path in files if path.suffix.lower() in READ and os.path.isfile(path)]
        left_out += [path for path in files if path.suffix.lower() in UNREAD or not os.path.exists(path)]
        left_out += [path for path in files if path.suffix.lower() in READ and is_special(path)]
    if left_out:
        named = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        cure = (
            "; pip install pillow-heif reads HEIC"
            if any(path.suffix.lower() in HEIC - READ for path in left_out)
            else ""
        )
        say(f"{len(left_out)} not looked at, not readable (save as PNG or JPEG{cure}): {named}")
    if not images:
        raise SystemExit(f"{sources[0]}: no image is there.")
    return list({Path(os.path.realpath(path.parent), path.name): path for path in reversed(images)}.values())[::-1]


def walk(folder: Path, above: tuple[str, ...], recursive: bool) -> Iterator[Path]:
    """Everything below a folder that is neither a folder nor hidden; links are followed, but not into `above`."""
    times: dict[str, int] = {}  # that a folder was read, since there can be endless ways of links to it
    left = [(folder, iter(sorted(os.listdir(folder))), above)]
    while left:
        here, names, above = left[-1]
        if (name := next(names, None)) is None:
            left.pop()
            continue
        path = here / name
        if name.startswith(".") or name.lower() in METADATA:
            continue
        if not os.path.isdir(path):
            yield path
        elif recursive and (real := real_path(above[-1], name)) not in above and times.get(real, 0) < MOST_TIMES:
            times[real] = times.get(real, 0) + 1
            try:
                left.append((path, iter(sorted(os.listdir(path))), (*above, real)))
            except OSError as error:
                say(f"{path} cannot be read: {error.strerror}")


def real_path(folder: str, name: str) -> str:
    """The real path of a folder in a folder whose path is real; links of Windows have kinds that `islink` misses."""
    path = os.path.join(folder, name)
    return os.path.realpath(path) if os.name == "nt" or os.path.islink(path) else path


def named(path: Path, end: str) -> Path:
    """The path with an end in place of its suffix, and with a shorter stem where a disk would refuse its length."""
    stem = path.stem
    while len(os.fsencode(stem + end)) > 255:
        stem = stem[:-1]
    return path.with_name(stem + end)


def places(images: list[Path], folder: Path) -> list[Path]:
    """Where the drawings go: the images' own names below their common folder, all different even if case is ignored."""
    root = os.path.commonpath([Path(os.path.abspath(path)).parent for path in images])
    taken: dict[str, Path] = {}
    files = {os.path.realpath(path) for path in images}
    for path in images:
        first = folder / Path(os.path.abspath(path)).relative_to(root)
        if first.suffix.lower() not in WRITTEN:
            first = named(first.with_name(f"{first.name}.png"), ".png")
        place = first
        number = 1
        while str(place).casefold() in taken:
            number += 1
            place = named(first, f"-{number}{first.suffix}")
        if os.path.realpath(place) in files:
            raise SystemExit(f"{place}: the drawing would replace an image of yours; choose another --draw.")
        taken[str(place).casefold()] = place
    return list(taken.values())


def say(line: str) -> None:
    """Print a line to standard error; what terminals obey or hide in names and paths is shown as an escape."""
    shown = (one if one.isprintable() or one in "\u200c\u200d" else ascii(one)[1:-1] for one in line)
    print("".join(shown), file=sys.stderr)


def main() -> None:
    """The command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Detect the classes of a prompt-tune bundle in images, on the CPU.")
    parser.add_argument("images", nargs="+", type=Path, help="images, and folders of them")
    parser.add_argument("--no-recursive", action="store_true", help="read folders without their subfolders")
    parser.add_argument("--bundle", type=Path, default=here.parent, help="default: the folder above this program's")
    parser.add_argument(
        "--learned",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="another vocabulary, and its label; can be repeated",
    )
    parser.add_argument("--conf", type=float, help="score above which a detection counts; default: each class's own")
    parser.add_argument(
        "--overlap",
        choices=["keep", "learned", "score"],
        default="keep",
        help="which of an original and a learned box on the same object is marked as hidden; default: keep both",
    )
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write annotated pictures there")
    parser.add_argument("--font", type=Path, help="font file for --draw; the default has English letters only")
    options = parser.parse_args()
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is skipped gets a line of ours
    quiet_libtiff()
    if options.font and not os.path.isfile(options.font):
        raise SystemExit(f"{options.font}: there is no such file.")
    images = find(options.images, not options.no_recursive, options.draw)
    detector = Detector(options.bundle, [options.bundle / "learned.vocab.safetensors", *options.learned])
    drawings = places(images, options.draw) if options.draw else []
    if drawings:
        names = [name for part in (detector.original, *detector.learned) for name in part.about["names"]]
        warn_of_boxes(names, options.font)
    results, skipped = [], []
    for number, path in enumerate(images):
        try:
            image = read_image(path)
        except ValueError as error:
            skipped.append(str(error))
            continue
        found = detector.detect(image, options.conf, options.overlap)
        results.append({"image": str(path), "width": image.width, "height": image.height, "detections": found})
        if drawings:
            drawings[number].parent.mkdir(parents=True, exist_ok=True)
            try:
                draw(image, found, options.font).save(drawings[number])
            except Exception as error:
                if getattr(error, "errno", None) is not None:
                    raise  # the disk
                say(f"{drawings[number]} cannot hold {image.width} x {image.height}: {error}")
                drawings[number].unlink(missing_ok=True)
    if not results:
        several = f"None of {len(skipped)} images can be read: " if len(skipped) > 1 else ""
        raise SystemExit(several + skipped[0])
    for reason in skipped:
        say(f"Skipped: {reason}")
    if skipped:
        say(f"{len(results)} image{'s' * (len(results) != 1)}, {len(skipped)} skipped")
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        say(f"{error.filename or 'error'}: {error.strerror or error}")
        sys.exit(1)
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        say(error.code)
        sys.exit(1)
