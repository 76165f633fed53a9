"""Finds files whose names are written in another way than where they are named, such as the label file of an image."""

import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from prompt_tune.runtime.folders import is_metadata
from prompt_tune.wording import counted

MAX_NAME, MAX_PATH = 255, 4096  # bytes of a file name and of a path, on Linux; other systems take less
_NAMED = 5  # images named in a warning
log = logging.getLogger(__name__)


class Finder:
    """Finds files whose names are written in another way than where they are named.

    macOS decomposes accents, Windows writes backslashes and ignores case, and web tools encode spaces as `%20`.
    """

    def __init__(self) -> None:
        """Start without any folder; each is listed at most once."""
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file or folder of that name; else the only one whose name means the same; else None."""
        written = [text for text in spellings(str(path)) if may_exist(text)]
        for text in written:
            if os.path.lexists(text):
                return Path(text)
        return next((found for text in written if (found := self._look_up(Path(text)))), None)

    def _look_up(self, path: Path) -> Path | None:
        """See `find`; each part of the path that is missing is looked up in turn."""
        missing: list[str] = []
        while path.parent != path and (not missing or not os.path.isdir(path)):
            missing.append(path.name)
            path = path.parent
        for name in reversed(missing):
            found = self._choice(path, name) if os.path.isdir(path) else None
            if found is None:
                return None
            path = found
        return path

    def _choice(self, folder: Path, name: str) -> Path | None:
        """The only entry of a folder that the name may mean."""
        same = self._listed(folder).get(folded(name), [])
        choices = [[file for file in same if form(file.name) == form(name)] for form in (_composed, _in_case)]
        return next((choice[0] for choice in (*choices, same) if len(choice) == 1), None)

    def _listed(self, folder: Path) -> dict[str, list[Path]]:
        """The entries of a folder by their folded names."""
        if folder not in self._folders:
            entries = self._folders[folder] = {}
            for name in os.listdir(folder) if os.access(folder, os.R_OK) else ():
                if not is_metadata(name):
                    entries.setdefault(folded(name), []).append(folder / name)
        return self._folders[folder]


def may_exist(text: str) -> bool:
    """Whether a path can be one of this system at all: no null byte, no character without a code, not too long."""
    try:
        name = os.fsencode(text)
    except ValueError:
        return False
    return b"\0" not in name and len(name) < MAX_PATH and all(len(part) <= MAX_NAME for part in name.split(b"/"))


def spellings(text: str) -> list[str]:
    """The ways to read a path: as it stands, with `/` for backslashes, and with `%20` and the like decoded."""
    slashes = text.replace("\\", "/")
    return list(dict.fromkeys((text, slashes, unquote(text), unquote(slashes))))


def folded(name: str) -> str:
    """A name without what people's systems change in it: Unicode form, case and url-encoding."""
    return _composed(unquote(name)).casefold()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _in_case(name: str) -> str:
    """A composed name whose suffix is in lower case."""
    stem, suffix = os.path.splitext(_composed(name))
    return stem + suffix.lower()


def pair(images: Sequence[Path], wanted: Callable[[Path], Path], finder: Finder) -> dict[Path, Path]:
    """The label files of images that have one.

    Args:
        images: The images.
        wanted: The label file of an image, by the rule of the format.
        finder: Finds label files whose names are written otherwise. One that another image has by the rule is that
            image's own.
    """
    labels = {image: label for image in images if os.path.lexists(label := wanted(image))}
    taken = set(labels.values())
    for image in images:
        if image not in labels and (found := finder.find(wanted(image))) and found not in taken:
            labels[image] = found
    return labels


def sharing(labels: Mapping[Path, Path]) -> dict[Path, list[Path]]:
    """The label files that several images have, with these images."""
    owners: dict[Path, list[Path]] = {}
    for image, label in labels.items():
        owners.setdefault(label, []).append(image)
    return {label: images for label, images in owners.items() if len(images) > 1}


def warn_of_sharing(shared: Mapping[Path, Sequence[Path]]) -> None:
    """Says in one line which images share a label file, such as `a.jpg` and `a.png`."""
    if shared:
        images = [image for group in shared.values() for image in group]
        what = counted(len(shared), "label file")
        named, more = ", ".join(f"`{path}`" for path in images[:_NAMED]), ", ..." if len(images) > _NAMED else ""
        log.warning("%d images share %s, and each has its boxes: %s", len(images), what, named + more)
