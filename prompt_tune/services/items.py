"""Where the images of a labelling job are: files, tars, Parquet files and addresses, listed and read one by one."""

import glob
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from prompt_tune.errors import DataError, PromptTuneError
from prompt_tune.runtime.folders import is_metadata
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, Places, as_places, find_all
from prompt_tune.runtime.images import Picture, decode_picture, read_picture
from prompt_tune.runtime.opening import UNNAMED
from prompt_tune.services.arrow import parquet_module

TAR, PARQUET = ".tar", ".parquet"
WHAT = "image, tar or Parquet file"
_ROWS = 16  # of a Parquet file with images that are decoded at once
Made = TypeVar("Made")
_REASON = 200  # characters of what a library says


class Item(NamedTuple):
    """One image.

    Attributes:
        path: Its name in the rows, which is unique: the absolute path or address of a file; that of a tar, a slash and
            the name in the tar; or that of a Parquet file, a slash and the row.
        place: The file, tar or Parquet file that has it, as a path or an address.
        start: Offset in bytes of the content in a tar, or the row in a Parquet file; -1 for a file.
        size: Bytes of the content in a tar; -1 for everything else.
        damage: Why it cannot be read; empty if that is not known yet.
    """

    path: str
    place: str
    start: int = -1
    size: int = -1
    damage: str = ""


def find_items(source: Places, *, recursive: bool = True, without: Path | None = None) -> Iterator[Item]:
    """The images of one or several sources, in order. An image that two sources name is given twice.

    Args:
        source: An image, a tar of images, a Parquet file (with a column `path`, `bytes`, or `image` with `bytes`), a
            folder of them, a glob pattern, or an address of one of these for fsspec, such as s3://BUCKET/FOLDER.
        recursive: Whether folders are read with their subfolders.
        without: A subfolder that is left out, such as the one that results are written to.

    Raises:
        DataError: A source has no images, or a Parquet file has no such column.
        PromptTuneError: pyarrow or fsspec is not installed, and a source needs it.
    """
    places = [str(place) for place in as_places(source)]
    local = [place for place in places if "://" not in place]
    suffixes = (*IMAGE_SUFFIXES, TAR, PARQUET)
    found = find_all(local, suffixes, WHAT, recursive=recursive, without=without) if local or not places else []
    for path in found:
        yield from _in_file(os.path.abspath(path))  # not resolved: names are what the user sees
    for place in places:
        if "://" in place:
            for address in _addresses(place, suffixes, recursive=recursive):
                yield from _in_file(address)


def read_items(
    items: Iterable[Item], pool: Executor, ready: Callable[[Picture], Made], *, ahead: int, whole: bool = False
) -> Iterator[tuple[Item, Made | DataError]]:
    """The images of items in their order, read, decoded and made ready by a pool.

    Args:
        items: Those of one Parquet file next to one another, by rising row.
        pool: Threads that read.
        ready: What they do with the picture.
        ahead: Number of images that are read before they are needed, so that the memory for them is bounded.
        whole: Whether very large JPEGs are read in their own size, as slices need them.

    Yields:
        The item with what `ready` gave, or with the error.
    """
    waiting: deque[tuple[Item, Future[Made | DataError]]] = deque()
    for item, read in _readers(items, whole=whole):
        waiting.append((item, pool.submit(_attempt, item, read, ready)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def item_of(path: str) -> Item:
    """The item that has a name in the rows.

    Raises:
        DataError: It is in a tar or Parquet file that is not there any more, or that cannot be read.
    """
    for suffix in (TAR, PARQUET):
        place, mark, inside = path.partition(f"{suffix}/")
        if mark and (_is_address(place) or os.path.isfile(place + suffix)):
            known = _contents(place + suffix)
            if path in known:
                return known[path]
            raise DataError(f"`{place}{suffix}` has no `{inside}` any more. Label it again.")
    return Item(path, path)


def content_of(item: Item) -> bytes:
    """The content of an image file, wherever it is.

    Raises:
        DataError: It cannot be read.
    """
    if item.damage:
        raise DataError(item.damage)
    try:
        if item.start >= 0 and item.size < 0:
            ((_, content),) = _rows(item.place, [item.start])
            if content is None:
                raise DataError(f"`{item.path}` cannot be read: the row has no content. Fill it.")
            return content
        if _is_address(item.place):
            system, place = _system(item.place)
            if item.start >= 0:
                return system.cat_file(place, start=item.start, end=item.start + item.size)
            return system.cat_file(place)
        with open(item.place, "rb") as file:
            file.seek(max(0, item.start))
            return file.read(item.size)
    except PromptTuneError:
        raise
    except Exception as error:  # of any class: each of fsspec's file systems has its own
        raise DataError(f"`{item.path}` cannot be read: {_reason(error)}.") from error


def text_of(path: str) -> str:
    """A path as text for rows: what is not valid Unicode in a file name becomes an escape such as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_file(place: str) -> Iterator[Item]:
    """The images of one file."""
    suffix = Path(place).suffix.lower()
    if suffix == TAR:
        yield from _in_tar(place)
    elif suffix == PARQUET:
        yield from _in_parquet(place)
    else:
        yield Item(text_of(place), place)


def _in_tar(place: str) -> Iterator[Item]:
    """The images of a tar. What of it is damaged is an item of its own, so that it gets a row with the error."""
    name, seen = text_of(place), set[str]()
    try:
        with _opened(place) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                path = Path(member.name)
                if not member.isfile() or path.suffix.lower() not in IMAGE_SUFFIXES or is_metadata(path.name):
                    continue
                if member.name not in seen:
                    seen.add(member.name)
                    yield Item(f"{name}/{text_of(member.name)}", place, member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile ends without a word
                raise tarfile.ReadError("it is damaged or cut off after its first images")
    except PromptTuneError:
        raise
    except Exception as error:  # of any class, as above
        yield Item(name, place, damage=f"`{name}` cannot be read as a tar: {_reason(error)}. Replace the file.")


def _in_parquet(place: str) -> Iterator[Item]:
    """The images of a Parquet file: paths, or contents."""
    parquet, name = parquet_module(), text_of(place)
    try:
        with _opened(place) as file:
            table = parquet.ParquetFile(file)
            column = _column(table)
            if column == "path":
                row = 0
                for batch in table.iter_batches(columns=["path"]):
                    for path in batch.column(0).to_pylist():
                        yield _listed(path, place, row)
                        row += 1
            elif column:
                yield from (Item(f"{name}/{row}", place, row) for row in range(table.metadata.num_rows))
            columns = table.schema_arrow.names
    except PromptTuneError:
        raise
    except Exception as error:  # of any class, as above
        damage = f"`{name}` cannot be read as a Parquet file: {_reason(error)}. Replace the file."
        yield Item(name, place, damage=damage)
        return
    if not column:
        raise DataError(
            f"`{name}` must have a column `path` or `bytes`, or `image` with a field `bytes`. It has: "
            f"{', '.join(columns)}. Rename one."
        )


def _listed(path: object, place: str, row: int) -> Item:
    """An image that a Parquet file names: relative paths begin at the folder of that file."""
    if not isinstance(path, str) or not path:
        name = f"{text_of(place)}/{row}"
        return Item(name, place, damage=f"`{name}` names no image: its `path` is {path!r:.50}. Fill it.")
    if _is_address(path):
        return Item(path, path)
    folder = os.path.dirname(place)
    full = f"{folder}/{path}" if _is_address(place) else os.path.abspath(os.path.join(folder, path))
    return Item(full, full)


def _column(table: Any) -> str | None:
    """The column of a Parquet file that has the images: contents before paths."""
    names = table.schema_arrow.names
    if "bytes" in names:
        return "bytes"
    if "image" in names and any(
        table.metadata.schema.column(number).path == "image.bytes" for number in range(table.metadata.num_columns)
    ):
        return "image.bytes"
    return "path" if "path" in names else None


def _rows(place: str, rows: list[int]) -> Iterator[tuple[int, bytes | None]]:
    """The contents in rows of a Parquet file, which rise; None for a row without one."""
    parquet, left = parquet_module(), deque(rows)
    with _opened(place) as file:
        table = parquet.ParquetFile(file)
        column, first = _column(table), 0
        for group in range(table.metadata.num_row_groups):
            end = first + table.metadata.row_group(group).num_rows
            row = first
            if left and left[0] < end:
                for batch in table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[column]):
                    values = batch.column(0)
                    while left and left[0] < row + len(batch):
                        value = values[left[0] - row].as_py()
                        yield left.popleft(), value["bytes"] if isinstance(value, dict) else value
                    row += len(batch)
                    if not left or left[0] >= end:
                        break
            first = end
            if not left:
                return


def _readers(items: Iterable[Item], *, whole: bool) -> Iterator[tuple[Item, Callable[[], Picture]]]:
    """A function for each item that gives its pixels. Contents in a Parquet file are read here, in one go."""
    for (place, is_row), group in groupby(items, key=lambda item: (item.place, item.start >= 0 and item.size < 0)):
        if not is_row:
            for item in group:
                yield item, partial(_picture, item, whole=whole)
            continue
        of_place = list(group)
        contents = _rows(place, [item.start for item in of_place])
        reason = ""
        for item in of_place:
            content = None
            if not reason:
                try:
                    _, content = next(contents)
                except Exception as error:  # of any class, as above
                    reason = _reason(error)
            lost = f"`{item.path}` cannot be read: {reason or 'the row has no content'}. Replace it."
            yield item, partial(decode_picture, content, whole=whole) if content is not None else partial(_fail, lost)


def _picture(item: Item, *, whole: bool) -> Picture:
    """The picture in a file or of a member of a tar."""
    if item.damage:
        raise DataError(item.damage)
    if item.start < 0 and not _is_address(item.place):
        return read_picture(item.place, whole=whole)
    return decode_picture(content_of(item), whole=whole)


def _fail(reason: str) -> Picture:
    raise DataError(reason)


def _attempt(item: Item, read: Callable[[], Picture], ready: Callable[[Picture], Made]) -> Made | DataError:
    """The image, or the error, which names the item."""
    try:
        return ready(read())
    except DataError as error:
        return DataError(str(error).replace(UNNAMED, f"`{item.path}`", 1))


def _addresses(place: str, suffixes: tuple[str, ...], *, recursive: bool) -> list[str]:
    """The files of an address: itself, those of a folder, or those that a pattern names."""
    system, path = _system(place)
    try:
        if glob.has_magic(path):
            found = system.glob(path)
        elif system.isdir(path):
            found = system.find(path, maxdepth=None if recursive else 1)
        else:
            found = [path]
    except Exception as error:  # of any class, as above
        raise DataError(f"`{place}` cannot be read: {_reason(error)}. Check the address.") from error
    files = [one for one in sorted(found) if one.lower().endswith(suffixes) and not is_metadata(Path(one).name)]
    if not files:
        raise DataError(f"`{place}` has no {WHAT}. Check the address.")
    return [system.unstrip_protocol(one) for one in files]


def _is_address(place: str) -> bool:
    return "://" in place


def _system(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise PromptTuneError(
            f"`{address}` needs fsspec with the file system of its scheme ({_reason(error)}). Install them, such as "
            "pip install fsspec s3fs for s3://, or gcsfs for gs://."
        ) from error


def _opened(place: str) -> IO[bytes]:
    if not _is_address(place):
        return open(place, "rb")
    system, path = _system(place)
    return system.open(path, "rb")


@cache
def _contents(place: str) -> dict[str, Item]:
    """The items of a tar or Parquet file by their paths."""
    return {item.path: item for item in _in_file(place)}


def _reason(error: Exception) -> str:
    """What a library says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:_REASON].rstrip(".") or type(error).__name__
