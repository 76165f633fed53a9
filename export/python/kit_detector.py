"""The graph of a bundle, run with ONNX Runtime: part of the program `detect.py`.

from kit_detector import Detector
from kit_images import read_image

detector = Detector(Path("bundle"), [Path("bundle/learned.vocab.safetensors")])
found = detector.detect(read_image(Path("photo.jpg")))
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from kit_images import Letterboxed, letterbox, network_input
from kit_vocabulary import Vocabulary, need, read_labelled, read_vocabulary, strict_json
from PIL import Image

LEAST_SCORE = 0.001  # thresholds of learned vocabularies let nothing below through
SAME_BOX_IOU = 0.7  # an original and a learned box that overlap by this or more are on the same object
MOST_SCORES = 2**29  # of an image, one for each prompt and anchor: 2 GiB, and several times that while it is computed
IOU = 0.7  # the graph drops a box that overlaps a better one of its class by more than this
ROUNDING = 1e-5  # the inverse of a calibration rounds, so the graph's threshold is lowered by this share


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
        """Detections in an upright RGB image, with boxes in `original_size`; `conf` replaces the classes' thresholds.

        `overlap` other than "keep" adds `hidden`: true for one of an original and a learned box on the same object.
        """
        placed = letterbox(image, self.graph["image_size"])
        images = network_input(placed.pixels[None])
        found = []
        for guide, learned in passes(self.original, self.learned):
            for group, rows in zip((guide, learned), self._run(images, guide, learned, conf), strict=True):
                found += detections(rows, group, placed, conf)
        self.mark_hidden(found, overlap)
        return found

    def mark_hidden(self, found: list[dict[str, Any]], overlap: str) -> None:
        """Add `hidden` to detections of one image, if `overlap` is not "keep"."""
        if overlap != "keep":
            hidden = self._hidden(found, overlap)
            for row, one in enumerate(found):
                one["hidden"] = row in hidden

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
        is_plain = about.get("slots") is None and about.get("suppression", True) is True
        need(is_plain, "it was made with --slots or --no-nms, for other runtimes")
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
    rows: np.ndarray, group: list[Vocabulary], placed: Letterboxed, conf: float | None, iou: float | None = None
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
