"""Folders with YOLO labels whose class names stand in a text file instead of a YAML, read as ultralytics' format.

- Label Studio: `classes.txt` with `images` and `labels`.
- CVAT ("YOLO 1.1"): `obj.names` with `obj_train_data`, `obj_valid_data` and so on; labels lie beside images.
- FiftyOne (`YOLOv4Dataset`): `obj.names` with `data`.
- Roboflow ("YOLO Darknet"): `_darknet.labels` in the folder of each split.
- labelImg: `classes.txt` beside the images and their labels.
"""

from pathlib import Path
from typing import Any

from prompt_tune.datasets.places import read_list
from prompt_tune.datasets.splits import split_folders, split_of
from prompt_tune.errors import DataError
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES

_CVAT, _ROBOFLOW, _PLAIN = "obj.names", "_darknet.labels", "classes.txt"


def darknet_content(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file with the class names, and what a YAML would say; None for folders in other formats.

    Raises:
        DataError: A list of names cannot be read, or the lists of two splits differ.
    """
    for names, entries in (
        (folder / _CVAT, _cvat_entries(folder)),
        (folder / _PLAIN, _plain_entries(folder)),
    ):
        if names.is_file() and entries:
            return names, {"names": read_list(names), **entries}
    parts = {split: part for split, part in split_folders(folder).items() if (part / _ROBOFLOW).is_file()}
    if not parts:
        return None
    lists = {part: read_list(part / _ROBOFLOW) for part in parts.values()}
    first = next(iter(lists))
    for part, names_there in lists.items():
        if names_there != lists[first]:
            raise DataError(f"`{first / _ROBOFLOW}` and `{part / _ROBOFLOW}` differ. Make them agree.")
    content: dict[str, Any] = {split: part.name for split, part in parts.items()}
    return folder / _ROBOFLOW, {"names": lists[first], **content}


def _cvat_entries(folder: Path) -> dict[str, str]:
    """The folders `obj_SPLIT_data`, or `data`."""
    found: dict[str, str] = {}
    for place in sorted(folder.glob("obj_*_data")):
        if place.is_dir() and (split := split_of(place.name.removeprefix("obj_").removesuffix("_data"))):
            found[split] = place.name
    return found or ({"train": "data"} if (folder / "data").is_dir() else {})


def _plain_entries(folder: Path) -> dict[str, str]:
    """`images`, by its subfolders if they are splits; or the folder itself, if labels lie beside its images."""
    images = folder / "images"
    if images.is_dir() and (folder / "labels").is_dir():
        parts = split_folders(images)
        return (
            {split: f"images/{part.name}" for split, part in parts.items()} if "train" in parts else {"train": "images"}
        )
    labelled = any(
        path.suffix.lower() in IMAGE_SUFFIXES and path.with_suffix(".txt").is_file() for path in folder.iterdir()
    )
    return {"train": "."} if labelled else {}
