"""Data sets with the CSV files of Open Images: `...annotations-bbox.csv` and `...class-descriptions....csv`.

They lie in the folder itself, in `annotations`, or as FiftyOne downloads them (`labels/detections.csv` and
`metadata/classes.csv` beside `data`, for each split). The images that are there decide what is read: boxes of other
images are passed over, since nobody downloads all of them, and only classes with a box here are classes of the data
set. A box with `IsGroupOf` is neither positive nor negative. An image without a box is left out: its objects are not
known.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from prompt_tune.datasets.finding import folded
from prompt_tune.datasets.named import Found, NamedImage, NamedRow, Pictures
from prompt_tune.datasets.places import MAX_JSON_BYTES
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.datasets.shapes import Box
from prompt_tune.datasets.splits import split_folders, split_of
from prompt_tune.datasets.tables import rows_of
from prompt_tune.errors import DataError
from prompt_tune.wording import counted, shown

_BOXES = "annotations-bbox.csv"
_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_DOWNLOADED = (Path("labels/detections.csv"), Path("metadata/classes.csv"))  # by FiftyOne
_CURE = "Download it again."
log = logging.getLogger(__name__)


def is_open_images(folder: Path) -> bool:
    """Whether a folder has a file of boxes."""
    return bool(_tables(folder))


def read_open_images(folder: Path) -> dict[str, Found]:
    """Reads the boxes of the images that are there, by split.

    Raises:
        DataError: There is no file of class names, or a file cannot be read. Lines that break a rule are left out.
    """
    found: dict[str, Found] = {}
    for split, file in _tables(folder).items():
        names = _class_names(folder, file)
        images = _image_folder(folder, split, file)
        found[split] = _read(file, Pictures(images), names)
    return found


def _tables(folder: Path) -> dict[str, Path]:
    """The file of boxes of each split."""
    found: dict[str, Path] = {}
    if (folder / _DOWNLOADED[0]).is_file():
        found["train"] = folder / _DOWNLOADED[0]
    for place in (folder, folder / "annotations"):
        for file in sorted(place.glob(f"*{_BOXES}")) if place.is_dir() else ():
            stem = file.name.removesuffix(_BOXES).rstrip("-").removeprefix("oidv6-")
            found.setdefault(split_of(stem) or "train", file)
    return found


def _image_folder(folder: Path, split: str, file: Path) -> Path:
    """The folder that holds the images of a split."""
    if file == folder / _DOWNLOADED[0]:
        return folder / "data" if (folder / "data").is_dir() else folder
    for place in (folder, folder / "images"):
        if place.is_dir() and (own := split_folders(place).get(split)):
            return own
    return folder


def _class_names(folder: Path, boxes: Path) -> dict[str, str]:
    """The name of each class by its identifier (`/m/01g317`), in the order of the file."""
    tried = [folder / _DOWNLOADED[1]]
    for place in (boxes.parent, folder, folder / "metadata"):
        if place.is_dir():
            tried += sorted(place.glob("*class-descriptions*.csv"))
    file = next((path for path in tried if path.is_file()), None)
    if file is None:
        raise DataError(
            f"`{boxes}` names classes by identifiers, and there is no file of their names beside it. Add "
            "`class-descriptions-boxable.csv`."
        )
    return {row[0]: row[1].strip() for _, row in rows_of(file) if len(row) >= 2 and row[0].startswith("/")}


def _read(file: Path, pictures: Pictures, names: dict[str, str]) -> Found:
    """The boxes of one file for the images of one folder."""
    images = {folded(path.stem): NamedImage(path, normalised=True) for path in pictures.paths}
    left_out = list(pictures.passed.values())
    columns: dict[str, int] = {}
    others = 0
    for number, row in rows_of(file, MAX_JSON_BYTES):
        if not columns:
            columns = {name.strip(): index for index, name in enumerate(row)}
            if missing := [name for name in _COLUMNS if name not in columns]:
                raise DataError(f"`{file}` has no column {', '.join(missing)}. {_CURE}")
            continue
        where = f"`{file}`, line {number}"
        if len(row) < len(columns):
            left_out.append(LeftOut(Reason.ROW, f"{where}: it has {len(row)} of {len(columns)} fields."))
            continue
        image = images.get(folded(row[columns["ImageID"]].strip()))
        if image is None:
            others += 1
            continue
        try:
            image.rows.append(_row(where, row, columns, names))
        except DataError as error:
            image.left_out.append(LeftOut(Reason.ROW, f"{where}: {error}"))
    if others:
        log.info("`%s`: %s of images that are not here.", file, counted(others, "box"))
    left_out += [
        LeftOut(Reason.UNLABELLED, f"`{image.path}` has no box in `{file}`: its objects are not known.")
        for image in images.values()
        if not image.rows and not image.left_out
    ]
    kept = [image for image in images.values() if image.rows or image.left_out]
    return Found(kept, left_out, _in_order(names, kept))


def _row(where: str, row: list[str], columns: dict[str, int], names: dict[str, str]) -> NamedRow:
    identifier = row[columns["LabelName"]].strip()
    if not names.get(identifier):
        raise DataError(f"class {shown(identifier)} is not in the file of class names.")
    group = columns.get("IsGroupOf")
    return NamedRow(where, names[identifier], _box(row, columns), group is not None and row[group].strip() == "1")


def _box(row: list[str], columns: dict[str, int]) -> Box:
    texts = [row[columns[key]] for key in ("XMin", "YMin", "XMax", "YMax")]
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError as error:
        raise DataError(f"a box has four numbers. Received: {shown(', '.join(texts))}.") from error
    return x1, y1, x2, y2


def _in_order(names: dict[str, str], images: Iterable[NamedImage]) -> tuple[str, ...]:
    """The classes that have a box, in the order of the file of names."""
    used = {row.name for image in images for row in image.rows}
    return tuple(dict.fromkeys(name for name in names.values() if name in used))
