"""Data sets in Pascal VOC's format: an XML file for each image.

The folders are `images` and `annotations`, or the devkit's `JPEGImages` and `Annotations`. The lists `train.txt`,
`val.txt` and `test.txt` (image names without suffix), in the folder itself or in the devkit's `ImageSets/Main`, assign
images to splits; without lists, every image is for training. Classes are sorted by name. An image without an XML file
is background.
"""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from prompt_tune.datasets.places import read_list, read_text
from prompt_tune.datasets.samples import LabelledImage, RawLabels, Row
from prompt_tune.errors import DataError
from prompt_tune.runtime.images import IMAGE_SUFFIXES, is_metadata

# Image folder, annotation folder, and the coordinate of the first pixel. The devkit counts pixels from 1 and its boxes
# include the last one, so the edges are xmin - 1 and xmax; other tools write edges.
_LAYOUTS = (("images", "annotations", 0.0), ("JPEGImages", "Annotations", 1.0))
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def is_voc(folder: Path) -> bool:
    """Whether a folder has one of the two layouts, with at least one XML file."""
    return _layout(folder) is not None


def read_voc(folder: Path) -> RawLabels:
    """Reads the labels of a folder in one of the two layouts.

    Raises:
        DataError: The folder has neither layout, or a list breaks a rule. An XML file that does makes its split
            unusable.
    """
    layout = _layout(folder)
    if layout is None:
        raise DataError(f"`{folder}` has no images with Pascal VOC annotations.")
    image_folder, xml_folder, first_pixel = layout
    images = {path.stem: path for path in image_folder.iterdir() if _is_image(path)}
    stems = _listed_stems(folder) or {"train": sorted(images)}
    read: dict[str, dict[str, _Annotation]] = {}
    unusable: dict[str, str] = {}
    for split, members in stems.items():
        try:
            read[split] = {stem: _read_xml(xml_folder / f"{stem}.xml", first_pixel) for stem in members}
        except DataError as error:
            unusable[split] = str(error)
    names = sorted(
        {thing.name for members in read.values() for annotation in members.values() for thing in annotation.things}
    )
    ids = {name: index for index, name in enumerate(names)}
    splits = {
        split: [
            LabelledImage(
                images.get(stem, image_folder / f"{stem}.jpg"),
                [Row(thing.where, ids[thing.name], thing.box_xyxy, thing.difficult) for thing in annotation.things],
                declared_wh=annotation.size_wh,
            )
            for stem, annotation in members.items()
        ]
        for split, members in read.items()
    }
    return RawLabels(tuple(names), "voc", splits, unusable)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_metadata(path.name)


class _Thing(NamedTuple):
    where: str
    name: str
    box_xyxy: tuple[float, float, float, float]
    difficult: bool


class _Annotation(NamedTuple):
    things: list[_Thing]
    size_wh: tuple[int, int] | None


def _layout(folder: Path) -> tuple[Path, Path, float] | None:
    for image_name, xml_name, first_pixel in _LAYOUTS:
        image_folder, xml_folder = folder / image_name, folder / xml_name
        if (
            image_folder.is_dir()
            and xml_folder.is_dir()
            and any(not is_metadata(path.name) for path in xml_folder.glob("*.xml"))
        ):
            return image_folder, xml_folder, first_pixel
    return None


def _listed_stems(folder: Path) -> dict[str, list[str]]:
    """The image names of each split that has a list; `trainval.txt` is used where `train.txt` is missing."""
    places = [place for place in (folder, folder / "ImageSets" / "Main") if any(place.glob("*.txt"))]
    for place in places:
        train = next((file for name in ("train", "trainval") if (file := place / f"{name}.txt").exists()), None)
        if train is not None:
            files = {"train": train} | {split: place / f"{split}.txt" for split in ("val", "test")}
            if train.stem == "trainval":
                del files["val"]  # trainval.txt has those images too
            return {split: _stems(file) for split, file in files.items() if file.exists()}
    return {}


def _stems(file: Path) -> list[str]:
    """The image names in a list, each once. The list may give them with or without a suffix."""
    lines = (Path(line) for line in read_list(file))
    return list(dict.fromkeys(line.stem if line.suffix.lower() in IMAGE_SUFFIXES else line.name for line in lines))


def _read_xml(file: Path, first_pixel: float) -> _Annotation:
    if not file.exists():
        return _Annotation([], None)
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        raise DataError(f"`{file}` is not valid XML: {error}. Correct or remove it.") from error
    things = []
    for number, entry in enumerate(root.iterfind("object"), start=1):
        where = f"`{file}`, object {number}"
        name = (entry.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where} has no name. Add `<name>`.")
        x1, y1, x2, y2 = (_number(entry.find("bndbox"), edge, where) for edge in _EDGES)
        difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "false", "False")
        things.append(_Thing(where, name, (x1 - first_pixel, y1 - first_pixel, x2, y2), difficult))
    size = [root.findtext(f"size/{side}") or "" for side in ("width", "height")]
    return _Annotation(things, (int(size[0]), int(size[1])) if all(side.isdecimal() for side in size) else None)


def _number(box: ElementTree.Element | None, edge: str, where: str) -> float:
    text = box.findtext(edge) if box is not None else None
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(f"{where}: `<bndbox>` must have `<{edge}>`, a number. Received: {text!r}.") from error
