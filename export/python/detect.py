"""Runs a bundle of `prompt-tune export` with NumPy, Pillow and ONNX Runtime: one file to read, copy or translate.

    pip install numpy pillow onnxruntime
    python detect.py photo.jpg --draw results

Prints JSON. The detections are those of `prompt-tune detect` on the CPU; the format of vocabulary files is in
`read_vocabulary`.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps

PAD_GREY = 114
IOU = 0.7  # a box that overlaps a better one of its class by more than this is dropped in the graph
ROUNDING = 1e-5  # the inverse of a calibration rounds: the graph's threshold goes down by this share
COLOURS = {True: "#9fb3c8", False: "#ff7a1a"}  # of original and of learned classes


@dataclass(frozen=True)
class Vocabulary:
    """Embeddings (n_cls, n_prompts, 512), thresholds (n_cls,), calibration (n_cls, 2): scale and shift of the logit;
    nms_iou (n_cls,): a class's own limit of overlap, after that of the graph."""

    label: str
    about: dict[str, Any]  # names, kind, guide_mode, digests of detector, text_tower and guide
    embeddings: np.ndarray
    thresholds: np.ndarray
    calibration: np.ndarray
    nms_iou: np.ndarray


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a safetensors file: 8 bytes with the header's size, a JSON header, raw little-endian float32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    about = json.loads(header.pop("__metadata__")["prompt-tune"])
    if about["version"] != 1:
        raise SystemExit(f"{path}: format version {about['version']}; this program reads version 1.")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    n_cls = len(about["names"])
    unchanged = np.tile(np.array([1, 0], np.float32), (n_cls, 1))  # (n_cls, 2)
    return Vocabulary(
        path.name.removesuffix(".vocab.safetensors"),
        about,
        tensors["embeddings"],
        tensors["thresholds"],
        tensors.get("calibration", unchanged),
        tensors.get("nms_iou", np.ones(n_cls, np.float32)),
    )


class Detector:
    """A bundle's graph, its original vocabulary and any learned ones."""

    def __init__(self, bundle: Path, learned: list[Path]) -> None:
        """Loads everything and refuses a vocabulary that was made for something else."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(bundle / "detector.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.graph = json.loads(self.session.get_modelmeta().custom_metadata_map["prompt-tune"])
        self.original = read_vocabulary(bundle / "original.vocab.safetensors")
        self.learned = [read_vocabulary(path) for path in learned]
        labels = [vocabulary.label for vocabulary in (self.original, *self.learned)]
        for vocabulary in (self.original, *self.learned):
            about, guide = vocabulary.about, self.original.about["guide"]
            wanted = {"detector": self.graph["detector"], "text_tower": self.original.about["text_tower"]}
            if about["kind"] == "plain" and about["detector"] == "":
                del wanted["detector"]  # for any detector
            if about["kind"] == "learned" and about["guide_mode"] == "original":
                wanted["guide"] = guide
            for what, digest in wanted.items():
                if about[what] != digest:
                    raise SystemExit(f"{vocabulary.label}: made for another {what} ({about[what][:12]}).")
            if labels.count(vocabulary.label) > 1:
                raise SystemExit(f"{vocabulary.label}: two vocabularies have this name; rename one of the files.")

    def detect(self, image: Image.Image, conf: float | None = None) -> list[dict[str, Any]]:
        """Detections of an upright RGB image, boxes in its pixels; `conf` takes the place of each class's threshold."""
        pixels, scale, left, top = letterbox(image, self.graph["image_size"])
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)  # (1, 3, h, w)
        together = [part for part in self.learned if part.about["guide_mode"] == "original"]
        groups = [[self.original], together]
        tables = list(self._run(images, [self.original], together, conf))
        for part in self.learned:
            if part.about["guide_mode"] == "own":  # it guides the network itself: a pass of its own
                groups.append([part])
                tables.append(self._run(images, [part], [], conf)[0])
        found = []
        for group, rows in zip(groups, tables, strict=True):
            rows = distinct(rows, np.concatenate([np.ones(0, np.float32), *(part.nms_iou for part in group)]))
            boxes = (rows[:, 1:5] - np.array([left, top] * 2, np.float32)) / np.float32(scale)
            boxes = np.clip(boxes, 0, np.array(image.size * 2, np.float32))
            for box, row in zip(boxes, rows, strict=True):
                vocabulary, index = locate(group, int(row[6]))
                score = calibrated(row[5], vocabulary.calibration[index])
                limit = vocabulary.thresholds[index] if conf is None else np.float32(conf)
                if score > limit and (box[2:] > box[:2]).all():
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

    def _run(
        self, images: np.ndarray, original: list[Vocabulary], learned: list[Vocabulary], conf: float | None
    ) -> Any:
        """One pass: two tables (n, 7) of image index, x1, y1, x2, y2 in pixels of the input, score, class."""
        numbers = (IOU, graph_conf(original, conf), graph_conf(learned, conf))
        feed = {"images": images, "original": packed(original), "learned": packed(learned)}
        for name, value in zip(("iou", "original_conf", "learned_conf"), numbers, strict=True):
            feed[name] = np.array([value], np.float32)
        return self.session.run(["original_detections", "learned_detections"], feed)


def packed(group: list[Vocabulary]) -> np.ndarray:
    """Several vocabularies as one input (n_cls, n_prompts, 512): prompts are repeated up to the largest number."""
    n_prompts = max((part.embeddings.shape[1] for part in group), default=1)
    parts = [part.embeddings[:, np.arange(n_prompts) % part.embeddings.shape[1]] for part in group]
    return np.concatenate([np.zeros((0, n_prompts, 512), np.float32), *parts])  # (n_cls, n_prompts, 512)


def locate(group: list[Vocabulary], index: int) -> tuple[Vocabulary, int]:
    """The vocabulary that class `index` of a packed group is from, and its row there."""
    for part in group:
        if index < len(part.thresholds):
            return part, index
        index -= len(part.thresholds)
    raise IndexError(index)


def distinct(rows: np.ndarray, nms_iou: np.ndarray) -> np.ndarray:
    """The rows (n, 7) of one image without those that overlap a better one of their class by more than its limit."""
    kept: dict[int, list[np.ndarray]] = {}
    for row in rows:  # the graph gives them class by class, the best first
        better, limit = kept.setdefault(int(row[6]), []), nms_iou[int(row[6])]
        if limit == 1 or all(overlap(row[1:5], other[1:5]) <= limit for other in better):
            better.append(row)
    return np.array([row for part in kept.values() for row in part], np.float32).reshape(-1, 7)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (4,): x1, y1, x2, y2."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    shared = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0).prod()
    return float(shared / max((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared, 1e-9))


def graph_conf(group: list[Vocabulary], conf: float | None) -> float:
    """The lowest score of the graph that can matter, before calibration; 1, which no score exceeds, without classes."""
    lowest = 1.0
    for part in group:
        limits = part.thresholds if conf is None else np.full(len(part.thresholds), conf, np.float32)
        for limit, (scale, shift) in zip(limits, part.calibration.astype(np.float64), strict=True):
            changed = (scale, shift) != (1, 0)
            needed = sigmoid((logit(limit) - shift) / scale) * (1 - ROUNDING) if changed else float(limit)
            lowest = min(lowest, needed)
    return lowest


def calibrated(score: np.float32, calibration: np.ndarray) -> np.float32:
    """The score with its logit scaled and shifted; (1, 0) leaves it as it is."""
    scale, shift = calibration.astype(np.float64)
    return score if (scale, shift) == (1, 0) else np.float32(sigmoid(scale * logit(score) + shift))


def logit(score: np.float32) -> float:
    """Of a score in 0..1."""
    with np.errstate(divide="ignore"):
        return float(np.log(np.float64(score)) - np.log1p(-np.float64(score)))


def sigmoid(value: float) -> float:
    """Of a logit, without overflow."""
    return float(np.exp(-np.logaddexp(0, -value)))


def read_image(path: Path) -> Image.Image:
    """An image as upright RGB."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise SystemExit(f"{path}: more than 8 bits a channel; save it with 8.")
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise SystemExit(f"{path} cannot be read as an image: {error}") from error


def letterbox(image: Image.Image, side: int) -> tuple[np.ndarray, float, int, int]:
    """The image scaled to fit a square and centred on grey: uint8 (side, side, 3), scale, left and top border."""
    scale = min(side / image.height, side / image.width)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    left, top = round((side - width) / 2 - 0.1), round((side - height) / 2 - 0.1)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.full((side, side, 3), PAD_GREY, np.uint8)
    pixels[top : top + height, left : left + width] = np.asarray(image)
    return pixels, scale, left, top


def draw(image: Image.Image, found: list[dict[str, Any]]) -> Image.Image:
    """The picture with boxes: original classes thin and grey, learned ones thick and orange."""
    picture = image.copy()
    canvas, side = ImageDraw.Draw(picture), sum(image.size) / 2
    height = max(11, side / 42)
    font = ImageFont.load_default(size=height)
    for one in sorted(found, key=lambda one: (one["vocabulary"] != "original", one["score"])):
        original = one["vocabulary"] == "original"
        x1, y1, x2, y2 = one["box_xyxy"]
        canvas.rectangle(
            (x1, y1, x2, y2), outline=COLOURS[original], width=max(1, round(side / (500 if original else 200)))
        )
        text, place = f"{one['class']} {one['score']:.2f}", (x1, max(0, y1 - 1.3 * height))
        canvas.rectangle(canvas.textbbox(place, text, font=font), fill=COLOURS[original])
        canvas.text(place, text, font=font, fill="black")
    return picture


def main() -> None:
    """The command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Detect the classes of a prompt-tune bundle in images, on the CPU.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--bundle", type=Path, default=here.parent, help="default: the folder that holds this one")
    parser.add_argument(
        "--learned", action="append", type=Path, default=[], help="one more vocabulary; can be repeated"
    )
    parser.add_argument("--conf", type=float, help="score above which a detection counts; default: each class's own")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write annotated pictures there")
    options = parser.parse_args()
    detector = Detector(options.bundle, [options.bundle / "learned.vocab.safetensors", *options.learned])
    results = []
    for path in options.images:
        image = read_image(path)
        found = detector.detect(image, options.conf)
        results.append({"image": str(path), "width": image.width, "height": image.height, "detections": found})
        if options.draw is not None:
            options.draw.mkdir(parents=True, exist_ok=True)
            draw(image, found).save(options.draw / f"{path.stem}.png")
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
