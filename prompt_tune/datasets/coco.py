"""Data sets in COCO's JSON: files named in a small YAML, or a folder as Roboflow exports it.

The YAML names a folder of images and an annotation file for each split. Paths start from the YAML's own folder, or from
`path`; `val` and `test` are optional:

    train: {images: train2017, annotations: annotations/instances_train2017.json}
    val: {images: val2017, annotations: annotations/instances_val2017.json}

Roboflow's folder has `train/_annotations.coco.json` beside the images of `train`, and likewise `valid` and `test`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tune.datasets.places import read_text, resolve, root_of
from prompt_tune.datasets.samples import LabelledImage, RawLabels, Row
from prompt_tune.errors import DataError

ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_SPLIT_KEYS = {"images", "annotations"}
_YAML_KEYS = {"path", "train", "val", "test"}
_LISTS = ("images", "annotations", "categories")
# Keys that survive parsing. The rest, above all the polygons, takes most of the memory of a parsed file.
_KEPT = {*_LISTS, "id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"}
_KEPT |= {"name", "supercategory"}


def read_coco_yaml(description: Path, content: dict[str, Any]) -> RawLabels:
    """Reads the labels of a YAML that names images and annotations of each split.

    Args:
        description: The YAML file, for paths and error texts.
        content: The mapping in that file.

    Returns:
        The labels of all splits, not checked against the images.

    Raises:
        DataError: A key breaks a rule. A path or an annotation that does makes its split unusable.
    """
    unknown = sorted(set(map(str, content)) - _YAML_KEYS)
    if unknown:
        raise DataError(
            f"`{description}`: a COCO description has {', '.join(sorted(_YAML_KEYS))}. Received: {', '.join(unknown)}."
        )
    root = root_of(description, content)
    places: dict[str, tuple[Path, Path]] = {}
    unusable: dict[str, str] = {}
    for split in ("train", "val", "test"):
        entry = content.get(split)
        if entry is None:
            continue
        try:
            places[split] = _place(root, entry, split, description)
        except DataError as error:
            unusable[split] = str(error)
    return _read(places, unusable)


def read_roboflow(folder: Path) -> RawLabels:
    """Reads the labels of a folder in Roboflow's layout. A split that breaks a rule is unusable."""
    places = {split: (folder / name, folder / name / ROBOFLOW_FILE) for split, name in ROBOFLOW_FOLDERS.items()}
    return _read({split: place for split, place in places.items() if place[1].exists()}, {})


def _place(root: Path, entry: Any, split: str, description: Path) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, as its entry in a description names them."""
    if (
        not isinstance(entry, dict)
        or set(entry) != _SPLIT_KEYS
        or not all(isinstance(value, str) for value in entry.values())
    ):
        raise DataError(
            f"`{description}`: `{split}` must be {{images: FOLDER, annotations: FILE}}. Received: {entry!r}."
        )
    return resolve(root, entry["images"], description), resolve(root, entry["annotations"], description)


def _read(places: dict[str, tuple[Path, Path]], unusable: dict[str, str]) -> RawLabels:
    """Reads splits, each an image folder and an annotation file. Classes are numbered in the order of category ids."""
    files: dict[str, dict[str, list[dict[str, Any]]]] = {}
    categories: dict[int, str] = {}
    supercategories: set[str] = set()
    for split, (_, file) in places.items():
        try:
            content = _read_json(file)
            own, groups = _categories(content, file, categories)
        except DataError as error:
            unusable[split] = str(error)
            continue
        files[split] = content
        categories |= own
        supercategories |= groups
    used = {_id(annotation, "category_id") for content in files.values() for annotation in content["annotations"]}
    # Roboflow adds a category for the whole project: the supercategory of all others, without a box of its own
    # and the group may have the name of one of its classes
    groups = supercategories | {name for index, name in categories.items() if index in used}
    kept = [index for index in sorted(categories) if index in used or categories[index] not in groups]
    class_ids: dict[int | str | None, int] = {index: position for position, index in enumerate(kept)}
    splits = {}
    for split in list(files):
        try:
            splits[split] = _images(files.pop(split), *places[split], class_ids)
        except DataError as error:
            unusable[split] = str(error)
    return RawLabels(tuple(categories[index] for index in kept), "coco", splits, unusable)


def _categories(
    content: dict[str, list[dict[str, Any]]], file: Path, known: Mapping[int, str]
) -> tuple[dict[int, str], set[str]]:
    """The categories of a file by id, and the supercategories that name a group; `known` are those of other files."""
    categories: dict[int, str] = {}
    groups: set[str] = set()
    for category in content["categories"]:
        index, name = category.get("id"), category.get("name")
        if not isinstance(index, int) or not isinstance(name, str):
            raise DataError(f"`{file}`: a category has an integer `id` and a `name`. Received: {category!r}.")
        other = known.get(index, categories.setdefault(index, name))
        if other != name:
            raise DataError(f"category {index} is `{other}` in one file and `{name}` in `{file}`.")
        if category.get("supercategory") != name:  # in COCO, `person` has the supercategory `person`
            groups.add(str(category.get("supercategory")))
    return categories, groups


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories` of a COCO file, reduced to the keys that are read."""
    try:
        content = json.loads(read_text(file), object_hook=_reduced)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"`{file}` is not valid JSON: {error}. Export it again.") from error
    lists = {}
    for key in _LISTS:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise DataError(f"`{file}` is not a COCO detection file: it must have a list `{key}` of objects.")
        lists[key] = found
    return lists


def _reduced(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object without the keys that nobody reads; called for each object while the file is parsed."""
    return {key: value for key, value in entry.items() if key in _KEPT}


def _images(
    content: dict[str, list[dict[str, Any]]], folder: Path, file: Path, class_ids: Mapping[int | str | None, int]
) -> list[LabelledImage]:
    images: dict[Any, LabelledImage] = {}
    for entry in content["images"]:
        name, key = entry.get("file_name"), _id(entry, "id")
        if not isinstance(name, str) or key is None or key in images:
            raise DataError(f"`{file}`: an image has an `id` of its own and a `file_name`. Received: {entry!r}.")
        width, height = entry.get("width"), entry.get("height")
        declared = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        images[key] = LabelledImage(folder / name, [], declared_wh=declared)
    for position, entry in enumerate(content["annotations"]):
        where = f"`{file}`, annotation {entry.get('id', f'number {position + 1}')}"
        image = images.get(_id(entry, "image_id"))
        if image is None:
            raise DataError(f"{where}: there is no image {entry.get('image_id')}. Remove it, or add the image.")
        class_id = class_ids.get(_id(entry, "category_id"))
        if class_id is None:
            raise DataError(f"{where}: class id {entry.get('category_id')} is outside the categories. Correct it.")
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise DataError(f"{where}: `bbox` must be [x, y, width, height]. Received: {box!r}.")
        x, y, w, h = map(float, box)
        is_crowd = bool(entry.get("iscrowd"))
        image.rows.append(Row(f"{where} ({image.path.name})", class_id, (x, y, x + w, y + h), is_crowd))
    return list(images.values())


def _id(entry: dict[str, Any], key: str) -> int | str | None:
    """An id, which files write as a number or as text; None for anything else."""
    value = entry.get(key)
    return value if isinstance(value, int | str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
