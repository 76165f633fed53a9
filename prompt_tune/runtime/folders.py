"""Folders: everything below one, with links followed and what computers add left out."""

import os
from collections.abc import Iterator
from pathlib import Path

from prompt_tune.errors import DataError

_METADATA = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


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
    return _walk(folder, (*left_out, os.path.realpath(folder)), recursive, unreadable)


def _walk(folder: Path, above: tuple[str, ...], recursive: bool, unreadable: list[str] | None) -> Iterator[Path]:
    """See `walk`; `above` are the real paths of the folders that are not read: this one, and those above it."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not is_metadata(entry.name))
    except OSError as error:
        raise DataError(f"`{folder}` cannot be read: {error.strerror}. Allow reading it, or leave it out.") from error
    for name in names:
        path = folder / name
        if not os.path.isdir(path):
            yield path
        elif recursive and (real := os.path.realpath(path)) not in above:
            try:
                yield from _walk(path, (*above, real), recursive, unreadable)
            except DataError as error:
                if unreadable is None:
                    raise
                unreadable.append(str(error))


def is_broken_link(path: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return os.path.islink(path) and not os.path.exists(path)
