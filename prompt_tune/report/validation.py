"""What `val` writes to a folder: pictures, a table of images, and all numbers as JSON."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from prompt_tune.errors import RunError
from prompt_tune.evaluation.per_image import ImageResult
from prompt_tune.evaluation.validate import ClassResult, Validation
from prompt_tune.files import saving
from prompt_tune.report.figures import draw_confusion, draw_f1, draw_precision_recall
from prompt_tune.wording import csv_cell

CONFUSION, PRECISION_RECALL, F1, IMAGES, NUMBERS = FILES = (
    "confusion.png",
    "precision_recall.png",
    "f1.png",
    "images.csv",
    "val.json",
)
COLUMNS = ("image", "vocabulary", "objects", "hits", "misses", "false_alarms", "missed_classes", "wrong_classes")


def write_validation(out: Path, result: Validation) -> None:
    """Write `FILES` to a folder, which is made if it is missing.

    Raises:
        RunError: A file cannot be written.
    """
    titles = [title(row, result) for row in result.classes]
    with saving(out / NUMBERS, RunError) as file:
        file.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    _write_images(out / IMAGES, result.per_image)
    draw_confusion(out / CONFUSION, result.confusion)
    draw_precision_recall(out / PRECISION_RECALL, result.curves, titles)
    draw_f1(out / F1, result.matched, titles, [row.threshold for row in result.classes])


def title(row: ClassResult, result: Validation) -> str:
    """The name of a class, with its vocabulary if several vocabularies are measured."""
    return f"{row.vocabulary}: {row.name}" if len({row.vocabulary for row in result.classes}) > 1 else row.name


def _write_images(path: Path, images: Sequence[ImageResult]) -> None:
    """Write one line for each image and vocabulary."""
    with (
        saving(path, RunError) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(COLUMNS)
        for image in images:
            numbers = image.objects, image.hits, image.misses, image.false_alarms
            classes = (_listed(image.missed), _listed(image.wrong))
            writer.writerow(map(csv_cell, (str(image.path), image.vocabulary, *numbers, *classes)))


def _listed(counts: Sequence[tuple[str, int]]) -> str:
    """ "2 lorry, 1 crane"."""
    return ", ".join(f"{count} {name}" for name, count in counts)
