"""Damaged data sets in each format: refused with a `PromptTuneError` of one line, or read as boxes that can be used.

python tests/stress/fuzz_data_sets.py --cases 20000 --seed 1
"""

import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from data_sets import TRAIN, VAL, write_coco, write_devkit, write_roboflow, write_voc, write_yolo
from stress.cases import FaultError, check_error, fuzz, scratch
from stress.mutate import json_text, mutate_bytes, mutate_json, mutate_text

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.samples import Split
from prompt_tune.errors import PromptTuneError

WRITERS: tuple[Callable[..., Path], ...] = (write_yolo, write_coco, write_roboflow, write_voc, write_devkit)
PICTURES = (".png", ".jpg")


def check(rng: random.Random, folder: Path) -> str:
    """One data set."""
    place, files = rng.choice(bases())
    root = folder / "set"
    shutil.rmtree(root, ignore_errors=True)
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    texts = [name for name in files if not name.endswith(PICTURES)]
    for _ in range(rng.choice((1, 1, 2))):
        _damage(rng, root / rng.choice(texts if rng.random() < 0.9 else list(files)))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        try:
            found = read_dataset(root / place)
        except PromptTuneError as error:
            check_error(error)
            return "refused"
    if shown:
        raise FaultError(f"{shown[0].category.__name__} on the terminal: {shown[0].message!s:.200}")
    for split in (found.train, found.val):
        _check(split, len(found.names))
    return "read" if not found.train.left_out and not found.val.left_out else "read, with something left out"


def _check(split: Split, n_cls: int) -> None:
    """Boxes lie in their images, and classes exist."""
    for sample in split.samples:
        labels, (width, height) = sample.labels, sample.size_wh
        boxes = labels.boxes_xyxy
        if (
            not np.isfinite(boxes).all()
            or (boxes < -0.01).any()
            or (boxes > np.array([width, height] * 2) + 0.01).any()
        ):
            raise FaultError(f"boxes outside the image of {width} x {height}: {boxes.tolist()!s:.200}")
        if (boxes[:, 2:] <= boxes[:, :2]).any():
            raise FaultError(f"boxes without area: {boxes.tolist()!s:.200}")
        if ((labels.classes < 0) | (labels.classes >= n_cls)).any():
            raise FaultError(f"classes outside 0..{n_cls - 1}: {labels.classes.tolist()!s:.200}")


def _damage(rng: random.Random, path: Path) -> None:
    """One change of a file."""
    kind = rng.random()
    if not path.is_file():
        return
    if kind < 0.03:
        path.unlink()
    elif kind < 0.05:
        path.unlink()
        path.mkdir()
    elif kind < 0.3 or path.suffix in PICTURES:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    else:
        text = path.read_text(errors="surrogateescape")
        if path.suffix == ".json" and kind < 0.9:
            try:
                changed = json_text(mutate_json(rng, json.loads(text)))
            except (ValueError, RecursionError):
                changed = mutate_text(rng, text)  # damaged before
        else:
            changed = mutate_text(rng, text)
        path.write_bytes(changed.encode("utf-8", "surrogatepass"))


@cache
def bases() -> tuple[tuple[str, dict[str, bytes]], ...]:
    """Place and files of a small data set in each format."""
    found = []
    for write in WRITERS:
        root = scratch()
        place = write(root, {"train": TRAIN, "val": VAL})
        files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        found.append((str(place.relative_to(root)), files))
        shutil.rmtree(root)
    return tuple(found)


if __name__ == "__main__":
    bases()
    sys.exit(fuzz(__doc__, check, cases=2_000))
