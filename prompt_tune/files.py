"""Files and folders that are written whole or not at all."""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write to a temporary file, which takes the place of `path` when the block ends without an error.

    Args:
        path: The file to make or replace. A missing parent folder is made.

    Yields:
        An empty file in the same folder, with the same suffix. If the block raises, it is removed, and `path` stays as
        it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    # not `tempfile`: its files are private, and to ask for the umask is to change it for every thread
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path | str) -> Iterator[Path]:
    """Fill a temporary folder, which takes the place of `folder` when the block ends without an error.

    The old folder is renamed to `backup_of(folder)`, the new one takes its name, and only then is the backup deleted.
    So one of the two is whole at any time. If a rename fails, the backup gets its name back. If the process is killed
    between the two renames, the next call restores the backup before it does anything else.

    Args:
        folder: The folder to make or replace. A missing parent folder is made.

    Yields:
        An empty folder beside it. If the block raises, it is removed, and `folder` stays as it was.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    backup = backup_of(folder)
    if os.path.lexists(backup) and not os.path.lexists(folder):
        os.replace(backup, folder)
    new = _sibling(folder)
    new.mkdir()
    try:
        yield new
        _remove(backup)  # a leftover: `folder` is whole
        _swap(new, folder, backup)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    try:
        _remove(backup)
    except OSError as error:
        logger.warning("%s, the folder before the last change, cannot be deleted: %s.", backup, error.strerror)


def backup_of(folder: Path) -> Path:
    """Where the old folder is while `replacing_folder` puts the new one in its place."""
    return folder.parent / f".{folder.name}.backup"


def _swap(new: Path, folder: Path, backup: Path) -> None:
    """Give `new` the name `folder`, and what had that name the name `backup`; all or nothing."""
    try:
        if os.path.lexists(folder):
            os.replace(folder, backup)
        os.replace(new, folder)
    except BaseException:
        if os.path.lexists(backup) and not os.path.lexists(folder):
            os.replace(backup, folder)
        raise


def _sibling(path: Path) -> Path:
    """A hidden name in the same folder that nothing has, with the same suffix."""
    return path.parent / f".{path.stem}-{secrets.token_hex(8)}{path.suffix}"


def _remove(path: Path) -> None:
    """Delete a folder, or a link to one, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
