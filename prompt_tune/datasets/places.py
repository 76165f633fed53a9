"""Text and YAML files of data sets, read with one-line errors, and the paths that they name."""

import codecs
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_broken_link, is_metadata, walk
from prompt_tune.runtime.images import unread_picture
from prompt_tune.wording import counted

_NAMED = 5  # files named in a warning
log = logging.getLogger(__name__)


def files_under(folder: Path, suffixes: tuple[str, ...], passed: dict[Path, LeftOut] | None = None) -> list[Path]:
    """The files with certain suffixes in a folder and its subfolders, sorted, without hidden ones and metadata.

    Links are followed. A folder that links lead back into is read once.

    Args:
        folder: The folder.
        suffixes: In lower case, with the dot.
        passed: Receives what is passed over, by path: broken links, and pictures in formats that are not read. If None,
            a warning names them.
    """
    found: list[Path] = []
    over: dict[Path, LeftOut] = {}
    for path in walk(folder):
        if path.suffix.lower() in suffixes and path.is_file():
            found.append(path)
        elif entry := broken_link(path):
            over[path] = entry
        elif reason := unread_picture(path):
            over[path] = LeftOut(Reason.FORMAT, f"`{path}` is not read, {reason}.")
    if passed is not None:
        passed.update(over)
    elif over:
        log.warning("Left out: %s", "; ".join(entry.what.rstrip(".") for entry in list(over.values())[:_NAMED]) + ".")
    return sorted(found)


def has_file(folder: Path, suffix: str) -> bool:
    """Whether a folder or a subfolder has a file with a suffix, which is in lower case."""
    return any(path.suffix.lower() == suffix for path in walk(folder))


def broken_link(path: Path) -> LeftOut | None:
    """What to say of a link that leads nowhere; None for any other path."""
    if is_broken_link(path):
        return LeftOut(Reason.LINK, f"`{path}` is a link that leads nowhere. Restore its target, or remove it.")
    return None


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file, or a folder between it and a root that it lies in, is hidden or metadata."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    return any(is_metadata(part) for part in parts if part != "..")


class Finder:
    """Finds files whose names are written in another way than where they are named.

    macOS decomposes accents, Windows writes backslashes and ignores case, and web tools encode spaces as `%20`.
    """

    def __init__(self) -> None:
        """Start without any folder; each is listed at most once."""
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file or folder of that name; else the only one whose name means the same; else None."""
        written = spellings(str(path))
        for text in written:
            if os.path.lexists(text):
                return Path(text)
        return next((found for text in written if (found := self._look_up(Path(text)))), None)

    def _look_up(self, path: Path) -> Path | None:
        if path.parent == path:
            return path
        folder = path.parent if path.parent.is_dir() else self._look_up(path.parent)
        if folder is None or not folder.is_dir():
            return None
        same = self._listed(folder).get(folded(path.name), [])
        choices = [[file for file in same if form(file.name) == form(path.name)] for form in (_composed, _in_case)]
        return next((choice[0] for choice in (*choices, same) if len(choice) == 1), None)

    def _listed(self, folder: Path) -> dict[str, list[Path]]:
        """The entries of a folder by their folded names."""
        if folder not in self._folders:
            entries = self._folders[folder] = {}
            for name in os.listdir(folder) if os.access(folder, os.R_OK) else ():
                if not is_metadata(name):
                    entries.setdefault(folded(name), []).append(folder / name)
        return self._folders[folder]


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
        log.warning("%d images share %s, and each has its boxes: %s", len(images), what, _first(images))


def _first(paths: Sequence[Path] | Mapping[Path, object]) -> str:
    """The first few of some paths."""
    return ", ".join(f"`{path}`" for path in sorted(paths)[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")


def clean_path(path: Path) -> Path:
    """A path without `..`, as the system follows it: `..` of a linked folder is the parent of the real folder."""
    plain = Path(os.path.normpath(path))
    if path.exists() and not (plain.exists() and path.samefile(plain)):
        return Path(os.path.realpath(path))
    return plain


def read_text(path: Path, errors: str = "strict") -> str:
    """Reads a UTF-8 text file, or one in UTF-16 with a byte-order mark, and drops the mark.

    Args:
        path: The file.
        errors: What `bytes.decode` does with bytes that are not UTF-8.

    Raises:
        DataError: The file is missing, cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors)
    except FileNotFoundError as error:
        raise DataError(f"`{path}`: no such file. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Raises:
        DataError: The file cannot be read, is not YAML, or holds something other than a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise DataError(f"`{path}`{where}: not valid YAML ({problem}). Correct the line.") from error
    if not isinstance(content, dict):
        raise DataError(f"`{path}` must hold a mapping with `train` and more. Received: {type(content).__name__}.")
    return content


def read_list(path: Path) -> list[str]:
    """Reads the lines of a text file, stripped, without empty ones. Names of files need not be UTF-8.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    lines = read_text(path, "surrogateescape").splitlines()  # as the names of files come from the system
    return [line.strip() for line in lines if line.strip()]


def root_of(description: Path, content: dict[str, Any]) -> Path:
    """The folder from which the entries of a description start.

    That is its `path`, relative to the description's own folder or else to the current one. Without `path`, it is the
    description's own folder.

    Raises:
        DataError: `path` is not the path of a folder.
    """
    named = content.get("path")
    folder = description.absolute().parent
    if named is None:
        return folder
    if not isinstance(named, str):
        raise DataError(f"`{description}`: `path` must be the path of a folder. Received: {named!r}.")
    tried = [folder / Path(named).expanduser(), Path.cwd() / Path(named).expanduser()]
    finder = Finder()
    for place in (*tried, *filter(None, map(finder.find, tried))):
        if place.is_dir():
            return clean_path(place)
    raise DataError(
        f"`{description}`: the folder `path: {named}` is neither beside this file nor in the current folder. Correct "
        "it, or remove the line if the images are beside this file."
    )


def resolve(root: Path, entry: str, description: Path) -> Path:
    """The file or folder that an entry of a description names.

    Roboflow writes `../train/images` for a folder beside the YAML, so such an entry is also looked up under `root`. A
    name that is written in another way is found, see `Finder`.

    Args:
        root: The folder from which the entry starts, see `root_of`.
        entry: The path as the description has it.
        description: The description, for error texts.

    Raises:
        DataError: There is no such file or folder.
    """
    tried = [root / Path(entry).expanduser()]
    if entry.startswith(("../", "..\\")):
        tried.append(root / entry[3:])
    finder = Finder()
    for place in (*tried, *filter(None, map(finder.find, tried))):
        if place.exists():
            return clean_path(place)
    raise DataError(f"`{description}`: there is no `{os.path.normpath(tried[0])}`. Correct the entry `{entry}`.")
