"""Data sets in Pascal VOC's format: an XML file for each image.

The folders are `images` and `annotations`, the devkit's `JPEGImages` and `Annotations`, or FiftyOne's `data` and
`labels`; or each XML file lies beside its image. Subfolders of the one match those of the other
(`JPEGImages/cam1/a.jpg` and `Annotations/cam1/a.xml`). The lists `train.txt`, `val.txt` and `test.txt` (image names
such as `cam1/a`, with or without suffix), in the folder itself or in the devkit's `ImageSets/Main`, assign images to
splits. Without lists, subfolders `train`, `valid` and `test` do; without these, every image is for training. Classes
are sorted by name. An image without an XML file is background. An XML file whose name is no image's belongs to the
image in its `<filename>`.
"""

import logging
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from prompt_tune.datasets.finding import Finder, folded, may_exist, pair, sharing, spellings, warn_of_sharing
from prompt_tune.datasets.gate import Gate
from prompt_tune.datasets.places import (
    MAX_LABEL_BYTES,
    cannot_use,
    files_under,
    has_file,
    is_hidden,
    read_list,
)
from prompt_tune.datasets.samples import LabelledImage, LeftOut, RawLabels, Reason, Row
from prompt_tune.datasets.shapes import Box, box_around, box_around_rotated
from prompt_tune.datasets.splits import by_split, split_folders
from prompt_tune.datasets.xml_files import parsed_xml
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import walk
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES
from prompt_tune.wording import counted, shown

# Image folder, annotation folder, and the coordinate of the first pixel. The devkit counts pixels from 1 and its boxes
# include the last one, so the edges are xmin - 1 and xmax. Other tools write edges, and so does CVAT in these folders.
_LAYOUTS = (("images", "annotations", 0.0), ("JPEGImages", "Annotations", 1.0), ("data", "labels", 0.0))
_OF_CVAT = "labelmap.txt"
_SIDE = re.compile(r"\d{1,9}")  # pixels, as text
_EDGES = ("xmin", "ymin", "xmax", "ymax")
log = logging.getLogger(__name__)


def is_voc(folder: Path) -> bool:
    """Whether a folder has one of the layouts of two folders, with at least one XML file."""
    return _layout(folder) is not None


def has_xml_beside(folder: Path) -> bool:
    """Whether a folder or a subfolder has an image with an XML file of its name beside it."""
    labels = {path.with_suffix("") for path in walk(folder) if path.suffix.lower() == ".xml"}
    return bool(labels) and any(
        path.suffix.lower() in IMAGE_SUFFIXES and path.with_suffix("") in labels for path in walk(folder)
    )


def read_voc(folder: Path) -> RawLabels:
    """Reads the labels of a folder in one of the layouts, or else with each XML file beside its image.

    Raises:
        DataError: The folder cannot be read. A list that breaks a rule makes its split unusable. XML files and objects
            that do are left out.
    """
    image_folder, xml_folder, first_pixel = _layout(folder) or (folder, folder, 0.0)
    images = _Images(image_folder, xml_folder)
    members: dict[str, list[Path]] = {}
    left_out: dict[str, list[LeftOut]] = {}
    unusable: dict[str, str] = {}
    lists = _lists(folder)
    for split, file in lists.items():
        try:
            gate = Gate.of([folder.absolute(), file.absolute().parent])
            members[split], left_out[split] = images.listed(read_list(file), file, gate)
        except DataError as error:
            unusable[split] = str(error)
    if not lists:
        members, left_out = _by_folder(images, image_folder)
    read: dict[str, dict[Path, _Annotation]] = {}
    for split, paths in members.items():
        read[split] = {}
        for path in paths:
            annotation = _read_xml(images.labels.get(path), first_pixel)
            if isinstance(annotation, _Annotation):
                read[split][path] = annotation
            else:
                left_out[split].append(annotation)
        read[split], others = _without_strangers(read[split], images.labels)
        left_out[split] += others
    names = sorted(
        {thing.name for found in read.values() for annotation in found.values() for thing in annotation.things}
    )
    ids = {name: index for index, name in enumerate(names)}
    splits = {
        split: [
            LabelledImage(
                path,
                [Row(thing.where, ids[thing.name], thing.box_xyxy, thing.difficult) for thing in annotation.things],
                declared_wh=annotation.size_wh,
                left_out=annotation.left_out,
            )
            for path, annotation in found.items()
        ]
        for split, found in read.items()
    }
    return RawLabels(tuple(names), "voc", splits, unusable, left_out)


class _Thing(NamedTuple):
    where: str
    name: str
    box_xyxy: Box
    difficult: bool


@dataclass(frozen=True, slots=True)
class _Annotation:
    things: list[_Thing] = field(default_factory=list)
    size_wh: tuple[int, int] | None = None
    file_name: str = ""
    left_out: list[LeftOut] = field(default_factory=list)


class _Images:
    """The images of a folder with their XML files, found by the names that lists give them.

    Attributes:
        paths: The images, sorted.
        labels: The XML file of each image that has one.
        passed: What cannot be used: links that lead nowhere, and pictures in formats that are not read.
        strays: XML files without an image.
    """

    def __init__(self, folder: Path, xml_folder: Path) -> None:
        """Match the images of a folder and the XML files of another one."""
        self.passed: dict[Path, LeftOut] = {}
        self.paths = files_under(folder, IMAGE_SUFFIXES, self.passed)
        self._folder = folder
        self._named: dict[str, list[Path]] = {}
        self._folded: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        for path in (*self.paths, *self.passed):
            relative = path.relative_to(folder)
            self._add(relative.as_posix(), path)
            self._add(relative.with_suffix("").as_posix(), path)
            self._stems.setdefault(folded(path.stem), []).append(path)
        self._xml_folder = xml_folder
        self._finder = Finder()
        self.labels = pair(self.paths, self._wanted, self._finder)
        self.strays: list[LeftOut] = []
        used = set(self.labels.values())
        for file in files_under(xml_folder, (".xml",), {}):
            if file not in used:
                self._match_by_file_name(file)

    def _wanted(self, path: Path) -> Path:
        """The XML file of an image by the rule of the format."""
        relative = path.relative_to(self._folder) if path.is_relative_to(self._folder) else Path(path.name)
        return (self._xml_folder / relative).with_suffix(".xml")

    def _add(self, name: str, path: Path) -> None:
        self._named.setdefault(name, []).append(path)
        self._folded.setdefault(folded(name), []).append(path)

    def _match_by_file_name(self, file: Path) -> None:
        """Gives an XML file whose name is no image's to the image in its `<filename>`, if that has no other."""
        relative = file.relative_to(self._xml_folder).with_suffix("")
        root = _parsed(file)
        name = ((root.findtext("filename") if isinstance(root, ElementTree.Element) else None) or "").strip()
        found = self.find((relative.parent / name).as_posix()) or self.find(name) if name else []
        free = [path for path in found if path not in self.labels and path not in self.passed]
        if len(free) == 1:
            self.labels[free[0]] = file
            self._add(relative.as_posix(), free[0])
        elif self.passed.keys().isdisjoint(found or self.find(relative.as_posix())):
            what = f"`{file}`: there is no image of this name, and none of its `<filename>` without an XML file."
            self.strays.append(LeftOut(Reason.ALONE, what))

    def find(self, line: str) -> list[Path]:
        """The images that a line of a list names: with or without suffix, from the image folder or from above it."""
        for text in spellings(line):
            path = Path(text)
            names = [path.as_posix()]
            if self._folder.name in path.parts:  # from above the folder
                after = len(path.parts) - path.parts[::-1].index(self._folder.name)
                names.append(Path(*path.parts[after:]).as_posix())
            if path.suffix.lower() in IMAGE_SUFFIXES:
                names += [Path(name).with_suffix("").as_posix() for name in names]
            for name in names:
                if found := self._named.get(name) or self._folded.get(folded(name)):
                    return found
            if path.is_absolute() or not os.path.isdir(self._folder / path.parent):
                alike = self._stems.get(folded(Path(names[-1]).name), [])
                if len(alike) == 1:  # the list has other folders than the data set
                    return alike
        return []

    def listed(self, lines: Iterable[str], file: Path, gate: Gate) -> tuple[list[Path], list[LeftOut]]:
        """The images that a list names, each once, and what is left out of them.

        Args:
            lines: The lines of the list.
            file: The list, for error texts.
            gate: The folders that images may lie in.

        Raises:
            DataError: An image lies outside the gate.
        """
        found: dict[Path, None] = {}
        left_out: dict[Path, LeftOut] = {}
        for line in lines:
            path = Path(line.replace("\\", "/"))
            if not may_exist(f"{line}.jpg") or not path.name:
                what = f"`{file}`: {shown(line)} cannot be the name of an image. Correct or remove the line."
                left_out[path] = LeftOut(Reason.IMAGE, what)
                continue
            if is_hidden(self._folder / path, self._folder):
                continue
            suffix = path.suffix if path.suffix.lower() in IMAGE_SUFFIXES else ".jpg"
            missing = self._folder / f"{path.with_suffix('') if path.suffix == suffix else path}{suffix}"
            for image in self.find(line) or [missing]:
                if image in self.passed:
                    left_out[image] = self.passed[image]
                else:
                    if image == missing:
                        gate.check(image, f"`{file}`", line)
                    found[image] = None
                    if image == missing and (label := self._finder.find(self._wanted(missing))):
                        self.labels.setdefault(missing, label)  # its classes are classes of the data set
        return list(found), list(left_out.values())


def _without_strangers(
    read: dict[Path, _Annotation], labels: dict[Path, Path]
) -> tuple[dict[Path, _Annotation], list[LeftOut]]:
    """Settles whose an XML file is that several images of one name share: that of the image in its `<filename>`."""
    left_out = []
    unsettled = {}
    for label, images in sharing({path: labels[path] for path in read if path in labels}).items():
        named = [path for path in images if folded(path.name) == folded(Path(read[path].file_name).name)]
        if len(named) != 1:
            unsettled[label] = images
            continue
        for path in images:
            if path != named[0]:
                what = f"`{path}` has no XML file of its own: `{label}` is that of `{named[0].name}`."
                left_out.append(LeftOut(Reason.IMAGE, what))
                del read[path]
    warn_of_sharing(unsettled)
    return read, left_out


def _by_folder(images: _Images, folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[LeftOut]]]:
    """The images, and what is left out with none of them, by the subfolders of splits; all are "train" without any."""
    parts = split_folders(folder)
    if "train" not in parts:
        return {"train": images.paths}, {"train": [*images.passed.values(), *images.strays]}
    members = {split: [path for path in images.paths if path.is_relative_to(part)] for split, part in parts.items()}
    passed = {
        split: [entry for path, entry in images.passed.items() if path.is_relative_to(part)]
        for split, part in parts.items()
    }
    passed["train"] += images.strays
    others = len(images.paths) - sum(map(len, members.values()))
    if others:
        log.warning("`%s`: %s outside the folders of the splits, not read.", folder, counted(others, "image"))
    return {split: paths for split, paths in members.items() if paths}, passed


def _layout(folder: Path) -> tuple[Path, Path, float] | None:
    for image_name, xml_name, first_pixel in _LAYOUTS:
        image_folder, xml_folder = folder / image_name, folder / xml_name
        if image_folder.is_dir() and xml_folder.is_dir() and has_file(xml_folder, ".xml"):
            return image_folder, xml_folder, 0.0 if (folder / _OF_CVAT).is_file() else first_pixel
    return None


def _lists(folder: Path) -> dict[str, Path]:
    """The list of each split that has one; `trainval.txt` is used where `train.txt` is missing."""
    for place in (folder, folder / "ImageSets" / "Main"):
        files = by_split(sorted(place.glob("*.txt")))
        both = place / "trainval.txt"
        if "train" not in files and both.exists():
            files.pop("val", None)  # trainval.txt has those images too
            files["train"] = both
        if "train" in files:
            return files
    return {}


def _parsed(file: Path) -> ElementTree.Element | LeftOut:
    """The root of an XML file, in the encoding that it declares; or why its image is left out."""
    try:
        return parsed_xml(file, MAX_LABEL_BYTES)
    except DataError as error:
        return cannot_use(file) or LeftOut(Reason.IMAGE, f"{error} Until then, its image is left out.")
    except ValueError as error:
        what = f"`{file}` is not valid XML: {error}. Correct or remove it; until then, its image is left out."
        return LeftOut(Reason.IMAGE, what)


def _read_xml(file: Path | None, first_pixel: float) -> _Annotation | LeftOut:
    """The objects of an XML file, or why its image is left out."""
    if file is None:
        return _Annotation()
    root = _parsed(file)
    if isinstance(root, LeftOut):
        return root
    things, left_out = [], []
    for number, entry in enumerate(root.iterfind("object"), start=1):
        where = f"`{file}`, object {number}"
        try:
            name = (entry.findtext("name") or "").strip()
            if not name:
                raise DataError("it has no name. Add `<name>`.")
            difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "false", "False")
            things.append(_Thing(where, name, _box(entry, first_pixel), difficult))
        except DataError as error:
            left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))
    size = [(root.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    size_wh = (int(size[0]), int(size[1])) if all(_SIDE.fullmatch(side) for side in size) else None
    return _Annotation(things, size_wh, root.findtext("filename") or "", left_out)


def _box(entry: ElementTree.Element, first_pixel: float) -> Box:
    """The box of an object; the box around it if it is turned, or a polygon."""
    box, rotated, polygon = entry.find("bndbox"), entry.find("robndbox"), entry.find("polygon")
    if box is not None:
        x1, y1, x2, y2 = (_number(box, edge) for edge in _EDGES)
        upright = (x1 - first_pixel, y1 - first_pixel, x2, y2)
        return box_around_rotated(upright, math.radians(_rotation(entry)))
    if rotated is not None:  # roLabelImg: about the centre, in radians
        x, y, w, h, angle = (_number(rotated, key) for key in ("cx", "cy", "w", "h", "angle"))
        return box_around_rotated((x - w / 2, y - h / 2, x + w / 2, y + h / 2), angle)
    if polygon is not None:  # `<x1>`, `<y1>`, `<x2>`, ..., or `<pt>` with `<x>` and `<y>`
        points = polygon.findall("pt") or polygon.findall("point")
        if points:
            return box_around([_number(point, axis) for point in points for axis in ("x", "y")])
        count = sum(child.tag.startswith("x") for child in polygon)
        return box_around([_number(polygon, f"{axis}{i}") for i in range(1, count + 1) for axis in ("x", "y")])
    other = [f"`<{child.tag}>`" for child in entry if len(child) and child.tag not in ("attributes", "part")]
    raise DataError(f"it must have `<bndbox>`. Received: {', '.join(other) or 'no box'}.")


def _rotation(entry: ElementTree.Element) -> float:
    """CVAT's rotation of a box about its centre, in degrees."""
    for attribute in entry.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            return _number(attribute, "value")
    return 0.0


def _number(element: ElementTree.Element, key: str) -> float:
    text = element.findtext(key)
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(f"`<{element.tag}>` must have `<{key}>`, a number. Received: {shown(text)}.") from error
