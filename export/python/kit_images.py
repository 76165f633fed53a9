"""Images, read with Pillow and made ready for the network: part of the program `detect.py`."""

import ctypes
import importlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

PAD_GREY = 114
WRITTEN = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # suffixes of drawings; else .png is added
OTHERS = ".apng .avif .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpf .jpx .mpo .pbm .pgm .pnm .ppm"
READ = {*WRITTEN, *OTHERS.split()}  # suffixes of the pictures that are looked for in a folder
HEIC = {".heic", ".heif", ".hif"}
NAMED = (  # camera raw, vector graphics, files of image editors, other formats
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
    ".sr2 .srf .srw .x3f .ai .eps .svg .svgz .afphoto .kra .ora .psb .psd .xcf .bpg .cur .dcm .dds .dib .emf .exr "
    ".fits .flif .hdr .icns .ico .jls .jxl .jxr .pcx .pfm .qoi .ras .sgi .tga .wdp .wmf .xbm .xpm"
)
UNREAD = {*NAMED.split()}  # suffixes of pictures that are not read, but named
# Pillow knows more formats, and gives PostScript to Ghostscript, which runs it
FORMATS = ["AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"]
try:
    importlib.import_module("pillow_heif").register_heif_opener()
    READ |= HEIC
except ImportError:
    UNREAD |= HEIC
MAX_MEGAPIXELS = 500  # reading takes up to 21 bytes of memory a pixel
WHOLE_MEGAPIXELS = 179  # a JPEG with more is decoded at 1/2, 1/4 or 1/8 of its width and height
LIMIT_VARIABLE = "PROMPT_TUNE_MAX_MEGAPIXELS"  # in the environment: another limit
REDUCED = "prompt-tune: sizes"  # in `info` of an image that was reduced: its size, and that of the original
Turn = Image.Transpose
TURNS = {  # EXIF orientation -> what turns the stored pixels upright
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}


def turn_of(image: Image.Image) -> Any:
    """What turns the pixels upright, or None. Pillow turns a TIFF itself; a broken tag counts as none."""
    try:
        value = 1 if image.format == "TIFF" else Image.Image.getexif(image).get(0x0112, 1)
    except Exception:  # Pillow raises errors of many classes
        return None
    return TURNS.get(value) if isinstance(value, int) else None


def max_megapixels() -> int:
    """The largest image that is read."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(MAX_MEGAPIXELS)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise ValueError(f"{LIMIT_VARIABLE} must be a whole number from 1 on, and is {text[:40]!r}")
    return int(text)


def quiet_libtiff() -> None:
    """Keep the library that reads TIFFs from writing of damaged ones on standard error: one line of ours is enough."""
    try:
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        handlers = library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
    except (AttributeError, OSError, TypeError):
        return  # not to be had from outside Pillow
    for set_handler in handlers:
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def read_image(source: Path | bytes, *, whole: bool = False) -> Image.Image:
    """A file, or its content, as upright RGB; 16-bit grey is reduced to 8 bits. Raises ValueError if it cannot be.

    A JPEG of more than `WHOLE_MEGAPIXELS` is reduced, unless it is wanted `whole`; `original_size` says what it had.
    """
    before = Image.MAX_IMAGE_PIXELS
    try:
        limit = max_megapixels()
        # Pillow's own limit calls a telephone's photo of 200 megapixels an attack. It refuses twice what it is set to.
        Image.MAX_IMAGE_PIXELS = limit * 1_000_000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _upright_rgb(source, limit, whole)
    except Exception as error:  # Pillow and the libraries below it raise errors of many classes
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image of a known format" if unknown else getattr(error, "strerror", None) or str(error)
        if unknown and isinstance(source, Path) and source.suffix.lower() in HEIC:
            reason = "HEIC needs pip install pillow-heif"
        elif isinstance(error, MemoryError):
            reason = "it does not fit into the memory that is free"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"it has more than {2 * limit} megapixels; {limit} are read, or as many as {LIMIT_VARIABLE} says"
        reason = " ".join(reason.split())[:200] or type(error).__name__
        what = source if isinstance(source, Path) else f"What was sent ({len(source)} bytes)"
        raise ValueError(f"{what} cannot be read as an image: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def original_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of the image that `read_image` read, upright: what boxes refer to."""
    size, original = image.info.get(REDUCED, (image.size, image.size))
    return original if size == image.size else image.size  # a crop inherits what it does not have


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device, which may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _upright_rgb(source: Path | bytes, limit: int, whole: bool) -> Image.Image:
    """See `read_image`; raises what the decoders raise."""
    if isinstance(source, Path) and is_special(source):
        raise ValueError("it is a pipe, a socket or a device, not a file")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    opened = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    with opened as file, Image.open(file, formats=known) as image:  # by its name, some TIFFs would be garbled
        megapixels = image.width * image.height / 1_000_000
        if megapixels > limit:
            raise ValueError(
                f"it has {megapixels:.4g} megapixels; scale it down to at most {limit}, or set {LIMIT_VARIABLE}"
            )
        if not megapixels:
            raise ValueError("it has no pixels")
        size, reduced = image.size, 1
        while not whole and reduced < 8 and -(-size[0] // reduced) * -(-size[1] // reduced) > WHOLE_MEGAPIXELS * 1e6:
            reduced *= 2
        if reduced > 1:
            image.draft(None, (size[0] // reduced, size[1] // reduced))  # does nothing but for JPEG
        is_reduced = image.size != size
        image.load()  # a PNG may have its orientation behind its pixels
        if image.mode in ("I", "F"):
            raise ValueError("32-bit pixels have no known range; save it with 8 bits")
        turn = turn_of(image)
        deep = image.mode.startswith("I;16")  # Pillow's own conversion would clip at 255
        rgb = (Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image).convert("RGB")
        upright = rgb if turn is None else rgb.transpose(turn)
        if is_reduced:
            is_turned = turn in (Turn.TRANSPOSE, Turn.ROTATE_270, Turn.TRANSVERSE, Turn.ROTATE_90)
            upright.info[REDUCED] = (upright.size, size[::-1] if is_turned else size)
        return upright


@dataclass(frozen=True)
class Letterboxed:
    """An image scaled to fit a square, and centred on grey."""

    pixels: np.ndarray  # uint8 (side, side, 3)
    scale: float
    left: int  # width of the border
    top: int
    size: tuple[int, int]  # width and height of the image


def letterbox(image: Image.Image, side: int) -> Letterboxed:
    """Scale an upright RGB image, as its `original_size` asks, to fit a square, and centre it on grey."""
    size = original_size(image)
    scale = min(side / size[1], side / size[0])
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    left, top = round((side - width) / 2 - 0.1), round((side - height) / 2 - 0.1)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.full((side, side, 3), PAD_GREY, np.uint8)
    pixels[top : top + height, left : left + width] = np.asarray(image)
    return Letterboxed(pixels, scale, left, top, size)


def network_input(pixels: np.ndarray) -> np.ndarray:
    """Letterboxed images, uint8 (b, side, side, 3), as the graph takes them: float32 (b, 3, side, side) in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
