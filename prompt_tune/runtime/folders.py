"""Folders: everything below one, with links followed and what computers add left out."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prompt_tune.errors import DataError

_METADATA = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_MOST_TIMES = 100  # that one folder is read: links can lead to it in more ways than there is time for


def is_metadata(name: str) -> bool:
    """Whether a file or folder of this name is hidden or was put there by a computer, so that it is no data."""
    return name.startswith(".") or name.lower() in _METADATA


def walk(
    folder: Path, *, recursive: bool = True, without: Path | None = None, unreadable: list[str] | None = None
) -> Iterator[Path]:
    """Everything in a folder that is not a folder, in order of names, without hidden files and metadata.

    Links are followed, and a folder that links lead back into is read once. Links that lead nowhere are given too.

    Args:
        folder: The folder.
        recursive: Whether its subfolders are read too.
        without: A subfolder that is left out.
        unreadable: Receives a sentence for each subfolder that cannot be read. If None, the first one is an error.

    Raises:
        DataError: The folder cannot be read.
    """
    left_out = () if without is None else (os.path.realpath(without),)
    entries = _entries(folder, left_out, recursive, unreadable)
    return (path for path, is_folder in entries if not is_folder)


def matching(pattern: Path, unreadable: list[str]) -> list[Path]:
    """What a glob pattern names, as `glob.glob` has it; but `**` ends where links lead back, as `walk` does.

    Hidden files and folders and metadata are left out, unless they stand before the first part with `*`, `?` or `[`.

    Args:
        pattern: One of its parts is a pattern.
        unreadable: Receives a sentence for each folder below `**` that cannot be read.
    """
    fixed = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    known: dict[tuple[Path, int], None] = {}
    left = [(Path(*pattern.parts[:fixed]), fixed)]
    while left:
        place, done = left.pop()
        if (place, done) in known:
            continue
        known[place, done] = None
        if done < len(pattern.parts):
            left += [(path, done + 1) for path in _matching_part(place, pattern.parts[done], unreadable)]
    return [place for place, done in known if done == len(pattern.parts) and os.path.lexists(place)]


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` as folders; as it is where there is no such user."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:  # a user with a NUL
        return Path(path)


def is_broken_link(path: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return os.path.islink(path) and not os.path.exists(path)


def _entries(
    folder: Path, left_out: tuple[str, ...], recursive: bool, unreadable: list[str] | None
) -> Iterator[tuple[Path, bool]]:
    """See `walk`; the folders too, and for each path whether it is one."""
    times: Counter[str] = Counter()
    left = [(folder, iter(_names(folder)), (*left_out, os.path.realpath(folder)))]
    while left:
        here, names, above = left[-1]  # `above`: real paths of the folders that are not read, this one and those above
        if (name := next(names, None)) is None:
            left.pop()
            continue
        path = here / name
        if not os.path.isdir(path):
            yield path, False
        elif recursive and (real := _real(above[-1], name)) not in above and times[real] < _MOST_TIMES:
            times[real] += 1
            try:
                left.append((path, iter(_names(path)), (*above, real)))
            except DataError as error:
                if unreadable is None:
                    raise
                unreadable.append(str(error))
            else:
                yield path, True


def _names(folder: Path) -> list[str]:
    """The sorted names in a folder, without hidden ones and metadata. Raises: DataError: It cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_metadata(entry.name))
    except OSError as error:
        raise DataError(f"`{folder}` cannot be read: {error.strerror}. Allow reading it, or leave it out.") from error


def _real(folder: str, name: str) -> str:
    """The real path of a folder in a folder whose path is real; links of Windows have kinds that `islink` misses."""
    path = os.path.join(folder, name)
    return os.path.realpath(path) if os.name == "nt" or os.path.islink(path) else path


def _matching_part(place: Path, part: str, unreadable: list[str]) -> list[Path]:
    """The paths below a place that one part of a pattern names."""
    if part == "**" and os.path.isdir(place):
        try:
            entries = list(_entries(place, (), True, unreadable))
        except DataError as error:
            unreadable.append(str(error))
            return []
        return [place, *(path for path, _ in entries)]
    if part == "**":
        return [place]
    if not glob.has_magic(part):
        return [] if is_metadata(part) else [place / part]
    try:
        names = _names(place)
    except (DataError, ValueError):
        return []
    return [place / name for name in names if fnmatch.fnmatch(name, part)]
