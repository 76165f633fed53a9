"""Places that data sets name: text and YAML read with one-line errors, and paths looked up where formats put them."""

import os
from pathlib import Path
from typing import Any

import yaml

from prompt_tune.errors import DataError


def read_text(path: Path) -> str:
    """A UTF-8 text file (a byte-order mark is dropped). Raises: DataError: missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"`{path}`: no such file. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises: DataError: unreadable, not YAML, or something else than a mapping."""
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
    """The lines of a text file that are not empty, stripped."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def root_of(description: Path, content: dict[str, Any]) -> Path:
    """The folder that a description's entries start from: its `path`, seen from its own folder or else from here."""
    named = content.get("path")
    folder = description.absolute().parent
    if named is None:
        return folder
    if not isinstance(named, str):
        raise DataError(f"`{description}`: `path` must be the path of a folder. Received: {named!r}.")
    tried = [folder / Path(named).expanduser(), Path.cwd() / Path(named).expanduser()]
    for place in tried:
        if place.is_dir():
            return Path(os.path.normpath(place))
    raise DataError(
        f"`{description}`: the folder `path: {named}` is neither beside this file nor in the current folder. Correct "
        "it, or remove the line if the images are beside this file."
    )


def resolve(root: Path, entry: str, description: Path) -> Path:
    """The file or folder that an entry of a description names.

    `../train/images` is looked up under `root` as well when it is not above it: that is how Roboflow writes it.
    """
    tried = [root / Path(entry).expanduser()]
    if entry.startswith("../"):
        tried.append(root / entry[3:])
    for place in tried:
        if place.exists():
            return Path(os.path.normpath(place))
    raise DataError(f"`{description}`: there is no `{os.path.normpath(tried[0])}`. Correct the entry `{entry}`.")
