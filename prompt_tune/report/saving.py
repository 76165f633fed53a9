"""Files that people look at, written whole or refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_tune.errors import RunError
from prompt_tune.files import replacing


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Like `replacing`, with an error for users when the file cannot be written.

    Args:
        path: The file to make or replace.

    Yields:
        A temporary file beside it, to write to.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"Cannot write {path}: {reason}. Choose another place or make room.") from error
