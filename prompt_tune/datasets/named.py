"""Labels whose classes have names instead of numbers, and the images that they name.

Formats that write the name of a class into each box (labelme, Label Studio, FiftyOne, CVAT, CSV) share this: a reader
makes `NamedImage`s, and `numbered` gives their classes the numbers of a data set. An image is looked up below the
folder of the data set and nowhere else, whatever path its label has: such paths are often those of another machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prompt_tune.datasets.finding import folded, spellings
from prompt_tune.datasets.places import files_under
from prompt_tune.datasets.samples import Kind, LabelledImage, LeftOut, RawLabels, Reason, Row
from prompt_tune.datasets.shapes import Box
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES
from prompt_tune.wording import shown

_NOT_IN_PATHS = ("", ".", "..", "/")


class NamedRow(NamedTuple):
    """One box; see `Row`."""

    where: str
    name: str
    box_xyxy: Box
    ignore: bool = False


@dataclass(slots=True)
class NamedImage:
    """An image file and its boxes; see `LabelledImage`."""

    path: Path
    rows: list[NamedRow] = field(default_factory=list)
    normalised: bool = False
    size_wh: tuple[int, int] | None = None
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """What a reader found of one split.

    Attributes:
        images: The images with their boxes; an image without boxes is background.
        left_out: What belongs to none of them.
        names: Classes in the order that the format has for them, if it has one.
    """

    images: list[NamedImage] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    names: tuple[str, ...] = ()


class Pictures:
    """The images below a folder, found by the names that labels have for them.

    Attributes:
        folder: The folder.
        paths: The images, sorted.
        passed: Links that lead nowhere, and pictures in formats that are not read.
    """

    def __init__(self, folder: Path) -> None:
        """List the images below a folder."""
        self.folder = folder
        self.passed: dict[Path, LeftOut] = {}
        self.paths = files_under(folder, IMAGE_SUFFIXES, self.passed)
        self._names: dict[str, list[Path]] = {}
        self._stems: dict[str, list[Path]] = {}
        for path in (*self.paths, *self.passed):
            self._names.setdefault(folded(path.name), []).append(path)
            self._stems.setdefault(folded(path.stem), []).append(path)

    def find(self, *names: str) -> Path | LeftOut | None:
        """The image that one of the names means; why it is left out if it cannot be used; None if there is none.

        A name may have folders before it: of several images of one name, the one whose folders match best is meant,
        and none if two match equally well.
        """
        for name in names:
            for text in spellings(name):
                parts = [folded(part) for part in text.split("/") if part not in _NOT_IN_PATHS]
                if not parts:
                    continue
                same = self._names.get(parts[-1]) or self._stems.get(parts[-1], [])
                if path := self._best(same, parts[:-1]):
                    return self.passed.get(path, path)
        return None

    def require(self, where: str, *names: str) -> Path | LeftOut:
        """See `find`; if there is no such image, what to say of it. `where` names the label."""
        what = f"{where}: there is no image {shown(names[0])} in `{self.folder}`. Put it there, or remove the entry."
        return self.find(*names) or LeftOut(Reason.IMAGE, what)

    def unlabelled(self, known: Iterable[Path], where: str) -> list[LeftOut]:
        """The images that no label knows, for formats in which such an image is not background; `where` has labels."""
        used = set(known)
        rest = [path for path in self.paths if path not in used]
        return [LeftOut(Reason.UNLABELLED, f"`{path}` has no entry in {where}.") for path in rest]

    def _best(self, paths: list[Path], folders: list[str]) -> Path | None:
        ranked: dict[int, list[Path]] = {}
        for path in paths:
            own = [folded(part) for part in path.parent.parts]
            same = 0
            while same < min(len(own), len(folders)) and own[-1 - same] == folders[-1 - same]:
                same += 1
            ranked.setdefault(same, []).append(path)
        best = ranked[max(ranked)] if ranked else []
        return best[0] if len(best) == 1 else None


class Album:
    """The images of a split while their labels are read: each once, and what is left out."""

    def __init__(self, folder: Path) -> None:
        """Start without an image; `folder` holds them."""
        self.pictures = Pictures(folder)
        self.left_out: list[LeftOut] = []
        self._images: dict[Path, NamedImage] = {}
        self._left: set[str] = set()

    def image(self, where: str, *names: str, normalised: bool = False) -> NamedImage | None:
        """The image of one of these names, to add boxes to; None, and a word on it, if it cannot be used."""
        path = self.pictures.require(where, *names)
        if isinstance(path, LeftOut):
            if names[0] not in self._left:  # once for all of its boxes
                self.left_out.append(path)
                self._left.add(names[0])
            return None
        return self._images.setdefault(path, NamedImage(path, normalised=normalised))

    def drop(self, path: Path) -> None:
        """Take an image out again, because its boxes are not known."""
        self._images.pop(path, None)

    def found(self, names: tuple[str, ...] = (), *, unlabelled: str = "", background: bool = False) -> Found:
        """The images with their boxes.

        Args:
            names: See `Found`.
            unlabelled: What has the labels, for images without an entry there, which are left out.
            background: Whether images without an entry are background instead.
        """
        left_out = [*self.left_out]
        if background:
            for path in self.pictures.paths:
                self._images.setdefault(path, NamedImage(path))
            known = {entry.what for entry in left_out}
            left_out += [entry for entry in self.pictures.passed.values() if entry.what not in known]
        elif unlabelled:
            left_out += self.pictures.unlabelled(self._images, unlabelled)
        return Found(list(self._images.values()), left_out, names)


def numbered(kind: Kind, splits: Mapping[str, Found]) -> RawLabels:
    """The labels with numbers for the classes: in the order of the format, then sorted by name.

    Args:
        kind: The format.
        splits: What was found, by split.
    """
    listed = dict.fromkeys(name for found in splits.values() for name in found.names)
    used = {row.name for found in splits.values() for image in found.images for row in image.rows}
    names = (*listed, *sorted(used - listed.keys()))
    ids = {name: index for index, name in enumerate(names)}
    return RawLabels(
        names,
        kind,
        {
            split: [
                LabelledImage(
                    image.path,
                    [Row(row.where, ids[row.name], row.box_xyxy, row.ignore) for row in image.rows],
                    normalised=image.normalised,
                    declared_wh=image.size_wh,
                    left_out=image.left_out,
                )
                for image in found.images
            ]
            for split, found in splits.items()
        },
        left_out={split: found.left_out for split, found in splits.items()},
    )
