"""Files and folders that are written whole or not at all, and safetensors files with one key of metadata."""

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tune import strict_json
from prompt_tune.contract import METADATA_KEY
from prompt_tune.errors import PromptTuneError

if TYPE_CHECKING:
    import numpy as np

MAX_METADATA_BYTES = 2**24  # 16 MiB of JSON; safetensors reads headers up to 100 MB
SEAL = "content"  # the field of a sealed file with its digest
MAX_NAME = 255  # bytes of a file name, on most disks
HEADER_ENTRY = {"dtype", "shape", "data_offsets"}  # what a safetensors header says of a tensor
MAKE_ROOM = "Choose another place or make room."
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
def told(path: Path | str, error: type[PromptTuneError], *, cure: str = MAKE_ROOM) -> Iterator[None]:
    """Turn a failure of the disk into one line for users.

    Args:
        path: What is written, as the line names it.
        error: The class of error to raise.
        cure: What to do about it, in a sentence of its own.

    Raises:
        PromptTuneError: The block raised an OSError; of the class `error`.
    """
    try:
        yield
    except OSError as reason:
        raise error(f"Cannot write {path}: {reason.strerror or reason}. {cure}") from reason


@contextmanager
def saving(path: Path | str, error: type[PromptTuneError], *, cure: str = MAKE_ROOM) -> Iterator[Path]:
    """Like `replacing`, with the errors of `told`."""
    with told(path, error, cure=cure), replacing(path) as temporary:
        yield temporary


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
    end = ".prompt-tune-backup"
    name = f".{folder.name}{end}"
    if len(encoded := os.fsencode(name)) > MAX_NAME:
        end = f"-{hashlib.sha256(encoded).hexdigest()[:16]}{end}"
        name = shortened(f".{folder.name}", MAX_NAME - len(end)) + end
    return folder.parent / name


def is_special(path: Path | str) -> bool:
    """Whether a path is a pipe, a socket or a device, which may never end, and not a file or a folder."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def shortened(text: str, most: int) -> str:
    """The beginning of a file's name that takes at most so many bytes."""
    while len(os.fsencode(text)) > most:
        text = text[:-1]
    return text


def tensor_bytes(tensors: Mapping[str, "np.ndarray"], fields: Mapping[str, Any]) -> bytes:
    """The content of a safetensors file with one key of metadata; equal arguments give equal bytes.

    Args:
        tensors: Float32 arrays by name.
        fields: Plain JSON.

    Raises:
        ValueError: The fields take more than `MAX_METADATA_BYTES`.
    """
    import numpy as np
    from safetensors.numpy import save

    text = json.dumps(fields, sort_keys=True)
    _check_size(text)
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata={METADATA_KEY: text})


def read_tensors(
    path: Path, check: Callable[[dict[str, Any], set[str]], None]
) -> tuple[dict[str, Any], dict[str, "np.ndarray"]]:
    """Fields and tensors of a file with the content of `tensor_bytes`.

    Args:
        path: A safetensors file.
        check: Called with the fields and the names of the tensors before any tensor is read, to refuse the file.

    Returns:
        The fields, of any JSON type each, and the float32 arrays, of any shape.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, its metadata is not one JSON object under one key, or a tensor is not float32.
            The text is a clause that says which.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            _check_header(path)
            fields, names = _parse_metadata(file.metadata()), file.keys()
            check(fields, set(names))
            for name in sorted(names):
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise ValueError(f"`{name}` must be float32 (F32). Received: {dtype}")
            return fields, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"not safetensors, or damaged or cut short ({error})") from error


def sealed_bytes(tensors: Mapping[str, "np.ndarray"], fields: Mapping[str, Any]) -> bytes:
    """Like `tensor_bytes`, with a digest of all of it among the fields, for `read_sealed`."""
    digest = hashlib.sha256(tensor_bytes(tensors, fields)).hexdigest()
    return tensor_bytes(tensors, {**fields, SEAL: digest})


def read_sealed(
    path: Path, check: Callable[[dict[str, Any], set[str]], None]
) -> tuple[dict[str, Any], dict[str, "np.ndarray"]]:
    """Like `read_tensors`; a file of `sealed_bytes` of which a bit has changed is refused.

    Files without a digest were written before there was one, and are taken as they are.
    """
    fields, tensors = read_tensors(path, check)
    digest = fields.pop(SEAL, None)
    if digest is not None and digest != hashlib.sha256(tensor_bytes(tensors, fields)).hexdigest():
        raise ValueError("its content is not what was written")
    return fields, tensors


def _check_header(path: Path) -> None:
    """Refuse what safetensors reads, but other readers of the file could read otherwise."""
    with path.open("rb") as file:
        text = file.read(int.from_bytes(file.read(8), "little")).decode()
    try:
        header = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"its header is not JSON ({error})") from error
    if not text.startswith("{"):
        raise ValueError("its header does not begin with a brace")
    for name, entry in header.items():
        if name != "__metadata__" and set(entry) != HEADER_ENTRY:
            raise ValueError(f"in its header, {name!r:.50} must have {sorted(HEADER_ENTRY)}. Received: {sorted(entry)}")


def _parse_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The fields in the metadata of a file."""
    if not metadata or METADATA_KEY not in metadata:
        raise ValueError(f"its metadata has no key `{METADATA_KEY}`")
    if len(metadata) > 1:
        raise ValueError(f"its metadata must have no key but `{METADATA_KEY}`. Received: {sorted(metadata)}")
    _check_size(metadata[METADATA_KEY])
    try:
        fields = strict_json.parse(metadata[METADATA_KEY])
    except ValueError as error:
        raise ValueError(f"its metadata is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError("its metadata must be a JSON object")
    return fields


def _check_size(text: str) -> None:
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata must fit in {MAX_METADATA_BYTES} bytes of JSON. Received: {len(text)}")


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
    """A hidden name in the same folder that nothing has, with the same suffix if disks take it."""
    mark = f"-{secrets.token_hex(8)}"
    room = MAX_NAME - len(f".{mark}") - len(os.fsencode(path.suffix))
    end = mark + (path.suffix if room >= 0 else "")
    return path.parent / f".{shortened(path.stem[:50], max(0, room))}{end}"


def _remove(path: Path) -> None:
    """Delete a folder, or a link to one, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
