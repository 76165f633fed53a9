"""Text and YAML files of data sets, read with one-line errors, and the paths that they name."""

import codecs
import os
from pathlib import Path
from typing import Any

from prompt_tune.datasets.finding import Finder
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_broken_link, is_metadata, walk
from prompt_tune.runtime.image_files import unread_picture


def files_under(folder: Path, suffixes: tuple[str, ...], passed: dict[Path, LeftOut]) -> list[Path]:
    """The files with certain suffixes in a folder and its subfolders, sorted, without hidden ones and metadata.

    Links are followed. A folder that links lead back into is read once.

    Args:
        folder: The folder.
        suffixes: In lower case, with the dot.
        passed: Receives what is passed over, by path, see `cannot_use`.
    """
    found: list[Path] = []
    for path in walk(folder):
        if path.suffix.lower() in suffixes and path.is_file():
            found.append(path)
        elif entry := cannot_use(path):
            passed[path] = entry
    return sorted(found)


def has_file(folder: Path, suffix: str) -> bool:
    """Whether a folder or a subfolder has a file with a suffix, which is in lower case."""
    return any(path.suffix.lower() == suffix for path in walk(folder))


def cannot_use(path: Path) -> LeftOut | None:
    """What to say of a link that leads nowhere, or of a picture in a format that is not read; None for other paths."""
    if is_broken_link(path):
        return LeftOut(Reason.LINK, f"`{path}` is a link that leads nowhere. Restore its target, or remove it.")
    if (why := unread_picture(path)) and path.is_file():
        return LeftOut(Reason.FORMAT, f"`{path}`: {why}.")
    return None


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file, or a folder between it and a root that it lies in, is hidden or metadata."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    return any(is_metadata(part) for part in parts if part != "..")


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
