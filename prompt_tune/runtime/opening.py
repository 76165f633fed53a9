"""Opening image files with Pillow: only the formats that are read, only real files, and up to a limit of our own."""

import ctypes
import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from prompt_tune.errors import DataError
from prompt_tune.files import is_special

# Those of the suffixes that are looked for. Pillow knows more, and gives PostScript to Ghostscript, which runs it.
FORMATS = frozenset(("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"))
MAX_MEGAPIXELS = 500  # the largest cameras have 400
WHOLE_MEGAPIXELS = 179  # twice what Pillow calls usual; JPEGs above are reduced where they are scaled down anyway
LIMIT_VARIABLE = "PROMPT_TUNE_MAX_MEGAPIXELS"
UNNAMED = "The image"  # in errors: an image that came without a file name
_BYTES_PER_PIXEL = 21  # of memory, at most: JPEG 2000; an upright JPEG takes 10, and others up to 18
_ASK_WHEN_OPENED = ("GIF", "WEBP")  # formats whose readers ask for Pillow's limit before they give the size


@contextmanager
def opened(path: str | Path | bytes, *, limit: int | None = None) -> Iterator[Image.Image]:
    """An image file, whose pixels are not decoded yet.

    Args:
        path: The file, or its content.
        limit: Megapixels that are read at most. By default `max_megapixels`, which errors then name.

    Raises:
        DataError: It is a folder, a pipe or a device, has no pixels, or has more than the limit.
        Exception: Of any class: Pillow and the libraries below it say what they raise for damaged files nowhere.
    """
    place = UNNAMED if isinstance(path, bytes) else f"`{path}`"
    if not isinstance(path, bytes) and is_special(path):
        raise DataError(f"{place} is a pipe, a socket or a device. Give a file.")
    rule = _limit_rule(max_megapixels()) if limit is None else f"At most {limit} are read here. Scale it down."
    limit = max_megapixels() if limit is None else limit
    # a file not by its name: Pillow 13 would garble some TIFFs that it turns
    with io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file:
        try:
            image = _open(file, limit * 1_000_000)
        except Image.DecompressionBombError as error:
            raise DataError(f"{place} has more than {limit} megapixels. {rule}") from error
        with image:
            width, height = image.size
            if width < 1 or height < 1:
                raise DataError(f"{place} has {width} x {height} pixels. Replace the file.")
            if width * height > limit * 1_000_000:
                raise DataError(
                    f"{place} has {width} x {height} pixels, {width * height / 1_000_000:.4g} megapixels. {rule}"
                )
            with _pillow_limit(limit * 1_000_000, only_for=width * height):  # some decoders ask for it once more
                yield image


def max_megapixels() -> int:
    """The largest image that is read: `MAX_MEGAPIXELS`, or what the environment variable `LIMIT_VARIABLE` says.

    Raises:
        DataError: The variable is not a whole number from 1 on.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return MAX_MEGAPIXELS
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise DataError(f"{LIMIT_VARIABLE} must be a whole number of megapixels from 1 on. Received: {text[:40]!r}.")
    return int(text)


def reduce_jpeg(image: Image.Image) -> None:
    """Let a JPEG of more than `WHOLE_MEGAPIXELS` be decoded at 1/2, 1/4 or 1/8 of its width and height.

    The largest of them that has no more pixels than that is taken. It costs a fraction of the memory of the whole.

    Args:
        image: From `opened`, not decoded yet; in another format, it stays as it is.
    """
    width, height = image.size
    shares = (share for share in (1, 2, 4) if -(-width // share) * -(-height // share) <= WHOLE_MEGAPIXELS * 1_000_000)
    if (share := next(shares, 8)) > 1:
        image.draft(None, (width // share, height // share))


def _limit_rule(limit: int) -> str:
    return (
        f"At most {limit} are read, since a pixel takes up to {_BYTES_PER_PIXEL} bytes of memory. Scale it down, cut "
        f"it into tiles, or raise the limit: {LIMIT_VARIABLE}=NUMBER in the environment."
    )


def _open(file: IO[bytes], most_pixels: int) -> Image.Image:
    """What `PIL.Image.open(file, formats=FORMATS)` gives, without Pillow's limit of pixels.

    That limit is a setting of the whole process: it warns of 90 megapixels and calls 180 an attack, while telephones
    take photos of 200. `opened` has a limit of its own, before anything is decoded.

    Raises:
        UnidentifiedImageError: No format fits.
        DecompressionBombError: It has more pixels, which was noticed before its size could be asked for.
    """
    head = file.read(16)
    tried: set[str] = set()
    _add_heic()
    for register in (Image.preinit, Image.init):  # the usual formats first, then all
        register()
        for name in [name for name in Image.ID if name in FORMATS - tried]:
            tried.add(name)
            reader, accepts = Image.OPEN[name]
            try:
                answer = accepts(head) if accepts else True
                if not answer or isinstance(answer, str):  # a text says what this Pillow lacks
                    continue
                file.seek(0)
                if name == "TIFF":
                    _quiet_libtiff()
                if name in _ASK_WHEN_OPENED:
                    with _pillow_limit(most_pixels):
                        return reader(file, "")
                return reader(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # as Pillow does: another format may fit
    raise UnidentifiedImageError


@cache
def _add_heic() -> None:
    """Let Pillow read HEIC, where the package for it is installed."""
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()


@cache
def _quiet_libtiff() -> None:
    """Keep Pillow's libtiff from writing of damaged files on standard error: such a file gets one line of ours."""
    try:
        library = ctypes.CDLL(import_module("PIL._imaging").__file__)
        handlers = library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
    except (AttributeError, OSError, TypeError):
        return  # a build of Pillow that does not show them, as on Windows
    for set_handler in handlers:
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


class _Limit(int):
    """A limit for Pillow, which warns above it and refuses above twice of it: here both are one."""

    def __rmul__(self, _: int) -> int:
        return self


class _Lifted:
    """How many threads have lifted Pillow's limit, and what it was before."""

    lock = threading.Lock()
    count = 0
    before: int | None = None


@contextmanager
def _pillow_limit(pixels: int, *, only_for: int | None = None) -> Iterator[None]:
    """Let Pillow refuse only what has more pixels, and never warn; the last thread puts its limit back.

    Args:
        pixels: The limit.
        only_for: Nothing is done if Pillow's own limit takes an image of so many pixels.
    """
    with _Lifted.lock:
        own = _Lifted.before if _Lifted.count else Image.MAX_IMAGE_PIXELS
        is_needed = own is not None and (only_for is None or only_for > own)
        if is_needed:
            _Lifted.before, Image.MAX_IMAGE_PIXELS = own, _Limit(pixels)
            _Lifted.count += 1
    try:
        yield
    finally:
        if is_needed:
            with _Lifted.lock:
                _Lifted.count -= 1
                if not _Lifted.count:
                    Image.MAX_IMAGE_PIXELS = _Lifted.before
