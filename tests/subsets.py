"""Parts of an ultralytics data set: the same images, with labels of only some classes."""

from collections.abc import Sequence
from pathlib import Path

import yaml


def write_subset(data: Path, folder: Path, names: Sequence[str]) -> Path:
    """Write a data set with only these classes, in this order. Objects of the others are not labelled.

    Args:
        data: The YAML of the complete set.
        folder: A new folder.
        names: Classes of the complete set.

    Returns:
        The YAML of the part.
    """
    content = yaml.safe_load(data.read_text())
    own = list(content["names"].values())
    place = {own.index(name): k for k, name in enumerate(names)}
    for split in ("train", "val"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / split).symlink_to(data.parent / "images" / split, target_is_directory=True)
        for label in sorted((data.parent / "labels" / split).iterdir()):
            rows = [line.split(" ", 1) for line in label.read_text().splitlines()]
            kept = [f"{place[int(row[0])]} {row[1]}\n" for row in rows if int(row[0]) in place]
            part = folder / "labels" / split / label.name
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text("".join(kept))
    description = {"train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder / "data.yaml"
