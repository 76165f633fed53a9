"""Which unlabelled images are worth labelling next: where learned classes are unsure, or contradict original ones.

It is hard-negative mining and active learning by uncertainty in one list (Settles, Active Learning Literature Survey,
2009). It runs on the inference box: it needs NumPy, ONNX Runtime and Pillow, and PyYAML for a data set to join.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompt_tune.contract import HOLD_OUT, SAME_BOX_IOU
from prompt_tune.datasets.held_out import pictures
from prompt_tune.datasets.reading import find_labels
from prompt_tune.datasets.replay import name_pattern
from prompt_tune.errors import DataError
from prompt_tune.files import saving
from prompt_tune.media.annotate import annotate
from prompt_tune.media.sources import open_source
from prompt_tune.progress import Progress
from prompt_tune.runtime.boxes import box_iou
from prompt_tune.runtime.detections import ORIGINAL, Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.image_files import Places, find_images
from prompt_tune.runtime.images import read_picture
from prompt_tune.wording import csv_cell

LOWEST = 0.02  # learned scores below it are no doubt about an object
TOP = 20
RANKING, JOINED = "ranking.csv", "data.yaml"


@dataclass(frozen=True)
class Candidate:
    """An image that is worth labelling.

    Attributes:
        path: The image.
        value: In 0..1; the highest comes first.
        reason: Why, in words.
    """

    path: Path
    value: float
    reason: str


@dataclass(frozen=True)
class Mined:
    """The result of mining.

    Attributes:
        candidates: The best, by falling value.
        images: How many images were looked at.
        skipped: One line for each image that cannot be read.
        data: The data set to label and to learn from.
    """

    candidates: tuple[Candidate, ...]
    images: int
    skipped: tuple[str, ...]
    data: Path


def mine(
    detector: Detector,
    source: Places,
    out: Path,
    *,
    top: int = TOP,
    join: Path | None = None,
    progress: Progress | None = None,
) -> Mined:
    """Rank unlabelled images, and write the best with pre-labels: for a person to correct, and to fit on.

    A learned detection with score s of a class with threshold t makes an image worth exp(-|logit(s) - logit(t)|), 1 at
    the threshold. One above its threshold on the box of an original class of another name (IoU 0.7 or more) makes it
    worth that class's score. The highest counts. Of copies of a picture, only the first is taken.

    Args:
        detector: With its vocabularies loaded.
        source: An image, a folder, a glob pattern, or several of them.
        out: A new or empty folder. It gets `ranking.csv`, `yolo` (a data set with pre-labels of the learned classes),
            `detections.json` (the same in COCO's format), `pictures` (with all detections drawn in) and, with `join`,
            `data.yaml`, which adds the images to that data set.
        top: How many images are written.
        join: The ultralytics YAML that the classes were learned from.
        progress: Called after each image.

    Raises:
        DataError: No image can be read or is worth labelling, `out` is not empty or cannot be written, or `join` is no
            ultralytics YAML with the learned classes.
    """
    if top < 1:
        raise DataError(f"`top`, the images to write, must be at least 1. Received: {top}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"`{out}` is not an empty folder. Give another --out.")
    learned = [key for key in detector.classes if key[0] != ORIGINAL]
    joined = None if join is None else _joined(join, [name for _, name in learned], out)
    paths = find_images(source)
    ranked: list[Candidate] = []
    skipped: list[str] = []
    for done, path in enumerate(paths, 1):
        try:
            (found,) = detector.detect(read_picture(path), learned_conf=LOWEST)
        except DataError as error:
            skipped.append(str(error))
            continue
        finally:
            if progress:
                progress("mine", done, len(paths), "")
        if (candidate := judge(path, found, detector)) is not None:
            ranked.append(candidate)
    if len(skipped) == len(paths):
        raise DataError(f"None of {len(paths)} images can be read: {skipped[0]}")
    ranked.sort(key=lambda candidate: -candidate.value)  # stable
    numbers = pictures([candidate.path for candidate in ranked])
    chosen = [ranked[i] for i in range(len(ranked)) if numbers[i] == i][:top]
    if not chosen:
        raise DataError(
            f"None of {len(paths)} images is worth labelling: the learned classes are sure of all. Give other images."
        )
    show = [f"{label}:*" for label in dict.fromkeys(label for label, _ in learned)]
    files = [candidate.path for candidate in chosen]
    annotate(detector, open_source(files), out=out, save=("coco", "yolo"), show=show, progress=progress)
    annotate(detector, open_source(files), out=out / "pictures", save=["pictures"], progress=progress)
    _write_ranking(out / RANKING, chosen)
    data = out / "yolo" / "data.yaml"
    if joined is not None:
        data = out / JOINED
        with saving(data, DataError) as temporary:
            temporary.write_text(joined, encoding="utf-8")
    return Mined(tuple(chosen), len(paths), tuple(skipped), data)


def judge(path: Path, found: Detections, detector: Detector) -> Candidate | None:
    """What makes an image worth labelling most; None if nothing does.

    Args:
        path: The image.
        found: Its detections, original ones above their thresholds, learned ones from `LOWEST` on.
        detector: What found them.
    """
    is_original = np.array([label == ORIGINAL for label in found.vocabularies], bool)
    originals = found.select(np.flatnonzero(is_original))
    best: Candidate | None = None
    for row in np.flatnonzero(~is_original).tolist():
        one = found[row]
        threshold = float(detector.vocabularies[one.vocabulary].thresholds[one.class_id])
        doubt = float(np.exp(-abs(_logit(one.score) - _logit(threshold))))
        options = [(doubt, f"{one.class_name} {one.score:.2f}, threshold {threshold:.2f}")]
        if one.score > threshold and len(originals):
            overlaps = box_iou(np.array([one.box_xyxy], np.float32), originals.boxes_xyxy)[0]
            same = name_pattern((one.class_name,))
            options += [
                (original.score, f"{one.class_name} {one.score:.2f} on {original.class_name} {original.score:.2f}")
                for original, overlap in zip(originals, overlaps, strict=True)
                if overlap >= SAME_BOX_IOU and same.search(original.class_name) is None
            ]
        value, reason = max(options)
        if best is None or value > best.value:
            best = Candidate(path, value, reason)
    return best


def _logit(score: float) -> float:
    score = min(max(score, 1e-6), 1 - 1e-6)
    return float(np.log(score / (1 - score)))


def _write_ranking(file: Path, chosen: Sequence[Candidate]) -> None:
    """A table of the images, the most valuable first."""
    with (
        saving(file, DataError) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(("rank", "image", "value", "reason"))
        for rank, candidate in enumerate(chosen, 1):
            row = (rank, str(candidate.path), f"{candidate.value:.4f}", candidate.reason)
            writer.writerow(map(csv_cell, row))


def _joined(description: Path, names: Sequence[str], out: Path) -> str:
    """The text of a YAML with the images of a data set and those that will be in `out`."""
    from prompt_tune.datasets.places import read_yaml, resolve, root_of

    labels = find_labels(description)
    if labels is None or labels.kind != "yolo" or not description.is_file() or labels.names != tuple(names):
        received = "another kind of data set" if labels is None or labels.kind != "yolo" else ", ".join(labels.names)
        raise DataError(
            f"`{description}` must be an ultralytics YAML with the learned classes, in their order: "
            f"{', '.join(names)}. Received: {received}. Give the data set that they were learned from."
        )
    content = read_yaml(description)
    root = root_of(description, content)
    splits: dict[str, list[str]] = {}
    for split in ("train",) if content.get(HOLD_OUT) else ("train", "val"):
        entries = content.get(split) or []
        entries = [entries] if isinstance(entries, str) else entries
        splits[split] = [str(resolve(root, entry, description)) for entry in entries]
    splits["train"].append(str((out / "yolo" / "images").absolute()))
    lines = [f"{split}: {json.dumps(places, ensure_ascii=False)}\n" for split, places in splits.items() if places]
    classes = [f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(names)]
    return "".join([*lines, "names:\n", *classes])  # JSON text is YAML text
