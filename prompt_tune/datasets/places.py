"""Text and YAML files of data sets, read with one-line errors, and the paths that they name."""

import codecs
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_tune.datasets.finding import Finder, may_exist
from prompt_tune.datasets.gate import Gate
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import DataError
from prompt_tune.files import is_special
from prompt_tune.runtime.folders import is_broken_link, is_metadata, walk
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, unread_picture
from prompt_tune.texts import MAX_YAML_BYTES, ParseError, parse_json, parse_yaml, regular_bytes
from prompt_tune.wording import shown

MAX_LABEL_BYTES = 2**26  # of the labels of one image: 64 MiB
MAX_LINE = 2**20  # characters of a line of a table
MAX_TEXT_BYTES = 2**30  # of a list of images: 1 GiB, of ten million paths
MAX_JSON_BYTES = 2**32  # of a COCO or grounding file: 4 GiB; the largest public ones have 2
_BEGINNING = 2**16  # bytes that tell a format
log = logging.getLogger(__name__)


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
    """What to say of a link that leads nowhere, and of a picture that is not read or no file; None for other paths."""
    if path.suffix.lower() in IMAGE_SUFFIXES and is_special(path):
        return LeftOut(Reason.IMAGE, f"`{path}` is a pipe, a socket or a device. Replace it with a file, or remove it.")
    if is_broken_link(path):
        return LeftOut(Reason.LINK, f"`{path}` is a link that leads nowhere. Restore its target, or remove it.")
    if (why := unread_picture(path)) and os.path.isfile(path):
        return LeftOut(Reason.FORMAT, f"`{path}`: {why}.")
    return None


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file, or a folder between it and a root that it lies in, is hidden or metadata."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    return any(is_metadata(part) for part in parts if part != "..")


def clean_path(path: Path) -> Path:
    """A path without `..`, as the system follows it: `..` of a linked folder is the parent of the real folder."""
    plain = Path(os.path.normpath(path))
    if os.path.exists(path) and not (os.path.exists(plain) and os.path.samefile(path, plain)):
        return Path(os.path.realpath(path))
    return plain


def expanded(text: str, where: str) -> Path:
    """The path that a text names, with `~` as the home folder.

    Args:
        text: The path as it is written.
        where: What names it, as the error begins.

    Raises:
        DataError: No file can have such a path, or there is no such user.
    """
    if not may_exist(text):
        raise DataError(f"{where}: {shown(text)} cannot be a path: it is too long or has a null byte. Correct it.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"{where}: {shown(text)} begins with a user that does not exist. Correct the path.") from error


def read_text(path: Path, errors: str = "strict", most: int = MAX_TEXT_BYTES) -> str:
    """Reads a UTF-8 text file, or one in UTF-16 with a byte-order mark, and drops the mark.

    Args:
        path: The file.
        errors: What `bytes.decode` does with bytes that are not UTF-8.
        most: The most bytes that the file may have.

    Raises:
        DataError: The file is missing, cannot be read, is too large, or is not UTF-8.
    """
    content = read_bytes(path, most)
    try:
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def read_bytes(path: Path, most: int) -> bytes:
    """Reads a regular file.

    Raises:
        DataError: The file is missing, cannot be read, or is larger than `most` bytes.
    """
    try:
        return regular_bytes(path, most)
    except FileNotFoundError as error:
        raise DataError(f"`{path}`: no such file. Check the path.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_lines(path: Path, most: int) -> Iterator[str]:
    """The lines of a UTF-8 text file one after another, for files that are larger than what should lie in memory.

    Bytes that are not UTF-8 become replacement characters.

    Raises:
        DataError: The file is missing, cannot be read, is larger than `most` bytes, or is a pipe, a socket or a device.
    """
    if is_special(path):
        raise DataError(f"`{path}` is a pipe, a socket or a device. Replace it with a file.")
    try:
        if os.path.getsize(path) > most:
            raise DataError(f"`{path}` cannot be read: it has more than {most:,} bytes.")
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            yield from iter(lambda: file.readline(MAX_LINE), "")
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def beginning(path: Path) -> str:
    """The first characters of a file, by which a format can be told; empty if it cannot be read."""
    try:
        if is_special(path):
            return ""
        with open(path, "rb") as file:
            content = file.read(_BEGINNING)
    except OSError:
        return ""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")


def read_yaml(path: Path, what: str = "a mapping with `train` and more") -> dict[str, Any]:
    """Reads the mapping in a YAML file.

    Args:
        path: The file.
        what: What it must hold, as the error says it.

    Raises:
        DataError: The file cannot be read, is not YAML, breaks a limit of `parse_yaml`, or holds something other than a
            mapping.
    """
    try:
        content = parse_yaml(read_text(path, most=4 * MAX_YAML_BYTES))  # UTF-16 and UTF-8 need up to 4 per character
    except ParseError as error:
        where = f"`{path}`, line {error.line}" if error.line else f"`{path}`"
        if error.is_limit:
            raise DataError(f"{where} cannot be read: {error}. Correct it.") from error
        raise DataError(f"{where}: not valid YAML ({error}). Correct the line.") from error
    if not isinstance(content, dict):
        raise DataError(f"`{path}` must hold {what}. Received: {type(content).__name__}.")
    return content


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any], cure: str, most: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        object_hook: Called with each object while the file is parsed; what it returns takes its place.
        cure: What to do about a file that is damaged, in a sentence of its own.
        most: The most bytes that the file may have.

    Raises:
        DataError: The file cannot be read, is not JSON, or breaks a limit of `parse_json`.
    """
    try:
        return parse_json(read_text(path, most=most), object_hook)
    except ParseError as error:
        raise DataError(f"`{path}` is not valid JSON: {error}. {cure}") from error


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
        raise DataError(f"`{description}`: `path` must be the path of a folder. Received: {shown(named)}.")
    written = expanded(named, f"`{description}`, `path`")
    tried = [folder / written, Path.cwd() / written]
    finder = Finder()
    for place in (*tried, *filter(None, map(finder.find, tried))):
        if os.path.isdir(place):
            root = clean_path(place)
            if not Gate.of([folder]).has(root):
                log.info("`%s`: its `path` is outside its own folder: `%s`.", description, root)
            return root
    if written.is_absolute() and _has_entries(
        folder, content
    ):  # FiftyOne writes the folder that it exported to, on another machine perhaps
        log.info("`%s`: its `path` is missing, so its entries start from its own folder.", description)
        return folder
    raise DataError(
        f"`{description}`: the folder `path: {named}` is neither beside this file nor in the current folder. Correct "
        "it, or remove the line if the images are beside this file."
    )


def _has_entries(folder: Path, content: dict[str, Any]) -> bool:
    """Whether a folder has what the training images of a description are named as, below it."""
    entry = content.get("train")
    entry = entry.get("images") if isinstance(entry, dict) else entry
    return (
        isinstance(entry, str)
        and may_exist(entry)
        and not entry.startswith(("/", "~"))
        and ".." not in Path(entry).parts
        and (folder / entry).exists()
    )


def gate_of(description: Path, root: Path) -> Gate:
    """The gate of a data set that a YAML describes, see `Gate`; `root` is that of `root_of`."""
    return Gate.of([description.absolute().parent], [root])


def resolve(root: Path, entry: str, description: Path) -> Path:
    """The file or folder that an entry of a description names.

    Roboflow writes `../train/images` for a folder beside the YAML, so such an entry is also looked up under `root`. A
    name that is written in another way is found, see `Finder`.

    Args:
        root: The folder from which the entry starts, see `root_of`.
        entry: The path as the description has it.
        description: The description, for error texts.

    Raises:
        DataError: There is no such file or folder, or a relative entry leaves the data set, see `Gate`.
    """
    written = expanded(entry, f"`{description}`")
    tried = [root / written]
    if entry.startswith(("../", "..\\")):
        tried.append(root / entry[3:])
    finder = Finder()
    for place in (*tried, *filter(None, map(finder.find, tried))):
        if os.path.exists(place):
            clean = clean_path(place)
            if clean == clean.parent:
                raise DataError(
                    f"`{description}`: the entry `{entry}` is the whole disk. Name the folder of the images."
                )
            if not written.is_absolute():
                gate_of(description, root).check(clean, f"`{description}`", entry)
            return clean
    raise DataError(f"`{description}`: there is no `{os.path.normpath(tried[0])}`. Correct the entry `{entry}`.")
