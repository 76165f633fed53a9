"""Text and YAML files of data sets, read with one-line errors, and the paths that they name."""

import logging
import os
from pathlib import Path
from typing import Any

from prompt_tune.errors import DataError
from prompt_tune.runtime.folders import is_broken_link, walk

_NAMED = 5  # broken links named in a warning
log = logging.getLogger(__name__)


def files_under(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with certain suffixes in a folder and its subfolders, sorted, without hidden ones and metadata.

    Links are followed. A folder that links lead back into is read once. Broken links are named in a warning.

    Args:
        folder: The folder.
        suffixes: In lower case, with the dot.
    """
    found: list[Path] = []
    broken: list[Path] = []
    for path in walk(folder):
        if path.suffix.lower() in suffixes and path.is_file():
            found.append(path)
        elif is_broken_link(path):
            broken.append(path)
    if broken:
        named = ", ".join(f"`{path}`" for path in sorted(broken)[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
        log.warning("%d links lead nowhere and are left out: %s", len(broken), named)
    return sorted(found)


def clean_path(path: Path) -> Path:
    """A path without `..`, as the system follows it: `..` of a linked folder is the parent of the real folder."""
    plain = Path(os.path.normpath(path))
    if path.exists() and not (plain.exists() and path.samefile(plain)):
        return Path(os.path.realpath(path))
    return plain


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file and drops a byte-order mark.

    Raises:
        DataError: The file is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
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
    """Reads the lines of a text file, stripped, without empty ones.

    Raises:
        DataError: The file is missing, cannot be read, or is not UTF-8.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


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
    for place in tried:
        if place.is_dir():
            return clean_path(place)
    raise DataError(
        f"`{description}`: the folder `path: {named}` is neither beside this file nor in the current folder. Correct "
        "it, or remove the line if the images are beside this file."
    )


def resolve(root: Path, entry: str, description: Path) -> Path:
    """The file or folder that an entry of a description names.

    Roboflow writes `../train/images` for a folder beside the YAML, so such an entry is also looked up under `root`.

    Args:
        root: The folder from which the entry starts, see `root_of`.
        entry: The path as the description has it.
        description: The description, for error texts.

    Raises:
        DataError: There is no such file or folder.
    """
    tried = [root / Path(entry).expanduser()]
    if entry.startswith("../"):
        tried.append(root / entry[3:])
    for place in tried:
        if place.exists():
            return clean_path(place)
    raise DataError(f"`{description}`: there is no `{os.path.normpath(tried[0])}`. Correct the entry `{entry}`.")
