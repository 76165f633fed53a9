"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the place of `path` when the block ends without an error.

    Args:    path: the file to make or replace; its folder is made when missing.
    Returns: (yields) the path of an empty file in the same folder, with the same suffixes.
    Raises:  whatever the block raises; then `path` is as it was and nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; a result should be as readable as any other
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
