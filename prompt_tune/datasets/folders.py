"""Folders of labelled images as annotation tools export them, recognised by their files."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prompt_tune.datasets.cvat import is_cvat, read_cvat
from prompt_tune.datasets.fiftyone import is_fiftyone, read_fiftyone
from prompt_tune.datasets.label_studio import is_label_studio, read_label_studio
from prompt_tune.datasets.labelme import is_labelme, read_labelme
from prompt_tune.datasets.named import Found, numbered
from prompt_tune.datasets.open_images import is_open_images, read_open_images
from prompt_tune.datasets.samples import Kind, RawLabels
from prompt_tune.datasets.splits import split_folders
from prompt_tune.datasets.tables import is_table, read_table


class _Format(NamedTuple):
    kind: Kind
    has: Callable[[Path], bool]
    read: Callable[[Path], dict[str, Found]]


_FORMATS = (
    _Format("table", is_table, read_table),
    _Format("open-images", is_open_images, read_open_images),
    _Format("fiftyone", is_fiftyone, read_fiftyone),
    _Format("cvat", is_cvat, read_cvat),
    _Format("label-studio", is_label_studio, read_label_studio),
    _Format("labelme", is_labelme, read_labelme),
)


def read_folder(folder: Path) -> RawLabels | None:
    """Reads a folder in one of the formats, or one with such a folder for each split (`train`, `valid`, `test`).

    Returns:
        The labels, or None if the folder has none of the formats.

    Raises:
        DataError: A file breaks a rule.
    """
    parts = split_folders(folder)
    for form in _FORMATS:
        own = {split: form.read(part) for split, part in parts.items() if form.has(part)}
        if own:
            return numbered(form.kind, {split: _joined(found) for split, found in own.items()})
        if form.has(folder):
            return numbered(form.kind, form.read(folder))
    return None


def _joined(found: dict[str, Found]) -> Found:
    """What was found in the folder of one split, whatever splits its own labels have."""
    return Found(
        [image for part in found.values() for image in part.images],
        [entry for part in found.values() for entry in part.left_out],
        tuple(dict.fromkeys(name for part in found.values() for name in part.names)),
    )
