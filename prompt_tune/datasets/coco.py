"""Data sets in COCO's JSON: files named in a small YAML, or a folder as Roboflow exports it.

The YAML names a folder of images and an annotation file for each split. Paths start from the YAML's own folder, or from
`path`; `val` and `test` are optional:

    train: {images: train2017, annotations: annotations/instances_train2017.json}
    val: {images: val2017, annotations: annotations/instances_val2017.json}

Roboflow's folder has `train/_annotations.coco.json` beside the images of `train`, and likewise `valid` (or `val`) and
`test`. An annotation without `bbox` is read as the box around its polygons.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prompt_tune.datasets.finding import Finder, may_exist
from prompt_tune.datasets.gate import Gate
from prompt_tune.datasets.places import cannot_use, is_hidden, read_json, resolve, root_of
from prompt_tune.datasets.samples import LabelledImage, LeftOut, RawLabels, Reason, Row
from prompt_tune.datasets.shapes import Box, box_around, box_around_rotated, is_number
from prompt_tune.errors import DataError
from prompt_tune.wording import brief, counted, shown

ROBOFLOW_FILE = "_annotations.coco.json"
ROBOFLOW_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_VAL_FOLDERS = (ROBOFLOW_FOLDERS["val"], "val", "validation")
_SPLIT_KEYS = {"images", "annotations"}
_YAML_KEYS = {"path", "train", "val", "test"}
_LISTS = ("images", "annotations", "categories")
# Keys that survive parsing. The rest, above all the polygons, takes most of the memory of a parsed file.
_KEPT = {*_LISTS, "id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"}
_KEPT |= {"name", "supercategory", "rotation", "coco_url", "not_exhaustive_category_ids"}
_ANGLES = ("rotation", "angle", "theta")  # of a box, where a tool says in its own way how it is turned
_OUTLINE = "outline"  # added while the file is parsed: the box around the polygons of an annotation without `bbox`
_TURNED = "turned"  # likewise: the angle of CVAT, in degrees about the centre
log = logging.getLogger(__name__)


def read_coco_yaml(description: Path, content: dict[str, Any]) -> RawLabels:
    """Reads the labels of a YAML that names images and annotations of each split.

    Args:
        description: The YAML file, for paths and error texts.
        content: The mapping in that file.

    Returns:
        The labels of all splits, not checked against the images.

    Raises:
        DataError: A key breaks a rule. A path or a file that does makes its split unusable. Entries that do are left
            out.
    """
    unknown = sorted({key if isinstance(key, str) else shown(key) for key in content} - _YAML_KEYS)
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
    return _read(places, unusable, [description.absolute().parent], [root])


def read_roboflow(folder: Path) -> RawLabels:
    """Reads the labels of a folder in Roboflow's layout. A split that breaks a rule is unusable."""
    names = dict(ROBOFLOW_FOLDERS)
    names["val"] = next((name for name in _VAL_FOLDERS if (folder / name / ROBOFLOW_FILE).exists()), names["val"])
    places = {split: (folder / name, folder / name / ROBOFLOW_FILE) for split, name in names.items()}
    return read_coco_files(folder, {split: place for split, place in places.items() if place[1].exists()})


def read_coco_files(folder: Path, places: dict[str, tuple[Path, Path]]) -> RawLabels:
    """Reads the labels of a folder whose image folder and annotation file of each split are known.

    A split that breaks a rule is unusable.
    """
    return _read(places, {}, [folder], [])


def _place(root: Path, entry: Any, split: str, description: Path) -> tuple[Path, Path]:
    """The image folder and the annotation file of a split, as its entry in a description names them."""
    if (
        not isinstance(entry, dict)
        or set(entry) != _SPLIT_KEYS
        or not all(isinstance(value, str) for value in entry.values())
    ):
        raise DataError(
            f"`{description}`: `{split}` must be {{images: FOLDER, annotations: FILE}}. Received: {shown(entry)}."
        )
    return resolve(root, entry["images"], description), resolve(root, entry["annotations"], description)


def _read(
    places: dict[str, tuple[Path, Path]], unusable: dict[str, str], descriptions: list[Path], named: list[Path]
) -> RawLabels:
    """Reads splits, each an image folder and an annotation file. Classes are numbered in the order of category ids.

    Args:
        places: The image folder and the annotation file of each split.
        unusable: Receives the error text of each split that cannot be read.
        descriptions: Folders of the descriptions, see `Gate`; those of annotation files are added.
        named: Folders that the user names, likewise; image folders are added.
    """
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
    splits, left_out = {}, {}
    for split in list(files):
        try:
            folder, file = places[split]
            gate = Gate.of([*descriptions, file.absolute().parent], [*named, folder])
            splits[split], left_out[split] = _images(files.pop(split), folder, file, class_ids, gate)
        except DataError as error:
            unusable[split] = str(error)
    return RawLabels(tuple(categories[index] for index in kept), "coco", splits, unusable, left_out)


def _categories(
    content: dict[str, list[dict[str, Any]]], file: Path, known: Mapping[int, str]
) -> tuple[dict[int, str], set[str]]:
    """The categories of a file by id, and the supercategories that name a group; `known` are those of other files."""
    categories: dict[int, str] = {}
    groups: set[str] = set()
    for category in content["categories"]:
        index, name = category.get("id"), category.get("name")
        if type(index) is not int or not isinstance(name, str):
            raise DataError(f"`{file}`: a category has an integer `id` and a `name`. Received: {shown(category)}.")
        other = known.get(index, categories.setdefault(index, name))
        if other != name:
            raise DataError(f"category {shown(index)} is `{brief(other)}` in one file and `{brief(name)}` in `{file}`.")
        if category.get("supercategory") != name:  # in COCO, `person` has the supercategory `person`
            groups.add(shown(group) if not isinstance(group := category.get("supercategory"), str) else group)
    return categories, groups


def _read_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories` of a COCO file, reduced to the keys that are read."""
    content = read_json(file, _reduced, "Export it again.")
    lists = {}
    for key in _LISTS:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise DataError(f"`{file}` is not a COCO detection file: it must have a list `{key}` of objects.")
        lists[key] = found
    return lists


def _reduced(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object without the keys that nobody reads; called for each object while the file is parsed."""
    kept = {key: value for key, value in entry.items() if key in _KEPT}
    if "image_id" not in entry:
        return kept
    attributes = entry.get("attributes")
    if isinstance(attributes, dict) and is_number(attributes.get("rotation")):
        kept[_TURNED] = attributes["rotation"]
    for key in _ANGLES:
        if entry.get(key):
            kept["rotation"] = entry[key]
    if not entry.get("bbox"):
        kept[_OUTLINE] = _outline(entry)
    return kept


def _outline(entry: dict[str, Any]) -> Box | str:
    """The box around the polygons of an annotation, or what it has instead."""
    parts = entry.get("segmentation")
    if isinstance(parts, list) and parts:
        flat = all(is_number(value) for value in parts)
        lists = [parts] if flat else parts
        if all(isinstance(part, list) and all(is_number(value) for value in part) for part in lists):
            try:
                boxes = [box_around(part) for part in lists]
            except DataError as error:
                return str(error)
            x1, y1, x2, y2 = zip(*boxes, strict=True)
            return min(x1), min(y1), max(x2), max(y2)
    if isinstance(parts, dict):
        return "a mask (RLE) alone is not read."
    return "keypoints alone are not read." if entry.get("keypoints") else ""


def _images(
    content: dict[str, list[dict[str, Any]]],
    folder: Path,
    file: Path,
    class_ids: Mapping[int | str | None, int],
    gate: Gate,
) -> tuple[list[LabelledImage], list[LeftOut]]:
    """The labelled images of a split, and what is left out with none of them."""
    images, left_out = _image_entries(content["images"], folder, file, gate)
    for position, entry in enumerate(content["annotations"]):
        where = f"`{file}`, annotation {shown(entry['id']) if 'id' in entry else f'number {position + 1}'}"
        key = _id(entry, "image_id")
        if key not in images:
            what = f"{where}: there is no image {shown(entry.get('image_id'))}. Remove it, or add the image."
            left_out.append(LeftOut(Reason.ROW, what))
            continue
        image = images[key]
        if image is None:  # it is left out itself
            continue
        where = f"{where} ({image.path.name})"
        category = _id(entry, "category_id")
        if category is None:
            what = f"{where}: `category_id` must be the id of a category. Received: {shown(entry.get('category_id'))}."
            image.left_out.append(LeftOut(Reason.ROW, what))
            continue
        if category not in class_ids:
            raise DataError(f"{where}: class id {shown(category)} is outside the categories. Correct it.")
        try:
            image.rows.append(Row(where, class_ids[category], _box(entry), bool(entry.get("iscrowd"))))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))
    _ignore_unfinished(content["images"], images, file, class_ids)
    unique = {id(image): image for image in images.values() if image is not None}
    return list(unique.values()), left_out


def _ignore_unfinished(
    entries: list[dict[str, Any]],
    images: Mapping[int | str | None, LabelledImage | None],
    file: Path,
    class_ids: Mapping[int | str | None, int],
) -> None:
    """Adds an ignored box as large as the image for each class of LVIS of which not every object has a box there."""
    for entry in entries:
        image, unfinished = images.get(_id(entry, "id")), entry.get("not_exhaustive_category_ids")
        size_wh = image.declared_wh if image is not None else None
        if image is None or size_wh is None or not all(map(is_number, size_wh)) or not isinstance(unfinished, list):
            continue
        where = f"`{file}`, image {shown(entry.get('id'))}"
        known = [index for index in unfinished if isinstance(index, int) and index in class_ids]
        box = (0.0, 0.0, float(size_wh[0]), float(size_wh[1]))
        image.rows.extend(Row(where, class_ids[index], box, ignore=True) for index in dict.fromkeys(known))


def _image_entries(
    entries: list[dict[str, Any]], folder: Path, file: Path, gate: Gate
) -> tuple[dict[int | str | None, LabelledImage | None], list[LeftOut]]:
    """The images by id, None for one that is not used, and what is left out."""
    finder = Finder()
    images: dict[int | str | None, LabelledImage | None] = {}
    by_path: dict[Path, LabelledImage] = {}
    left_out: list[LeftOut] = []
    twice = 0
    named = {(_id(entry, "id"), name) for entry in entries if (name := _file_name(entry)) is not None}
    owners = Counter(key for key, _ in named)
    for position, entry in enumerate(entries):
        name, key = _file_name(entry), _id(entry, "id")
        where = f"`{file}`, image {f'number {position + 1}' if key is None else shown(key)}"
        if name is None or not may_exist(name) or key is None or owners[key] > 1:
            what = f"{where}: an image has an `id` of its own and a `file_name`. Received: {shown(entry)}."
            left_out.append(LeftOut(Reason.IMAGE, what))
            if key is not None:
                images[key] = None
            continue
        path = _image_path(folder, name, entry, finder)
        gate.check(path, f"{where}, `file_name`", name)
        width, height = entry.get("width"), entry.get("height")
        declared = (width, height) if type(width) is int and type(height) is int else None
        if is_hidden(path, folder):
            images[key] = None
        elif link := cannot_use(path):
            left_out.append(link)
            images[key] = None
        else:
            twice += path in by_path
            images[key] = by_path.setdefault(path, LabelledImage(path, [], declared_wh=declared))
    if twice:
        log.warning("`%s` lists %s more than once: each counts once.", file, counted(twice, "image"))
    return images, left_out


def _file_name(entry: dict[str, Any]) -> str | None:
    """The file name of an image. LVIS has an address instead, whose last two parts are folder and file."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if isinstance(name, str) or not isinstance(address, str):
        return name if isinstance(name, str) else None
    return "/".join(address.split("/")[-2:])


def _image_path(folder: Path, name: str, entry: dict[str, Any], finder: Finder) -> Path:
    """Where an image lies: in its folder; LVIS takes its validation images from two folders of COCO, side by side."""
    tried = [folder / name]
    if "coco_url" in entry and "/" in name:
        tried += [folder.parent / name, folder / name.rsplit("/", 1)[1]]
    return next((path for place in tried if (path := finder.find(place))), tried[-1])


def _box(entry: dict[str, Any]) -> Box:
    """The box of an annotation."""
    outline = entry.get(_OUTLINE)
    if isinstance(outline, tuple):
        return outline
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        why = outline or ("with an angle, it is a rotated box." if isinstance(box, list) and len(box) == 5 else "")
        cure = f" {why[0].upper()}{why[1:]}" if why else ""
        raise DataError(f"`bbox` must be [x, y, width, height]. Received: {shown(box)}.{cure}")
    if entry.get("rotation"):
        raise DataError(f"a rotated box (by {shown(entry['rotation'])}) is not read. Give the upright box around it.")
    x, y, w, h = map(float, box)
    return box_around_rotated((x, y, x + w, y + h), math.radians(entry.get(_TURNED) or 0))


def _id(entry: dict[str, Any], key: str) -> int | str | None:
    """An id, which files write as a number or as text; None for anything else."""
    value = entry.get(key)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
