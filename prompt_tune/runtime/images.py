"""Images: found, read upright as RGB, and letterboxed to the network's input, with the way back for boxes."""

import glob
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from prompt_tune.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PAD_GREY = 114  # ultralytics' letterbox colour, which YOLO-World was trained with
# what Pillow's decoders raise for files that are damaged, truncated, absurdly large, or no images
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_END_MARKS = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"IEND",
}  # stands near the end of a file that is all there
_TAIL_BYTES = 4096  # cameras append a little after the end mark


@dataclass(frozen=True)
class Letterbox:
    """How an image was placed in the network's input, and boxes between the two frames.

    `size_wh`: width and height of the original image; `input_hw`: height and width of the network's input; `scale`:
    input pixels per original pixel; `pad_xy`: the grey columns on the left and rows above.
    """

    size_wh: tuple[int, int]
    input_hw: tuple[int, int]
    scale: float
    pad_xy: tuple[int, int]

    @classmethod
    def of(cls, size_wh: tuple[int, int], input_hw: tuple[int, int]) -> "Letterbox":
        """How an image of this size is placed; see `letterbox`."""
        (width, height), (input_h, input_w) = size_wh, input_hw
        scale = min(input_h / height, input_w / width)
        scaled_w, scaled_h = max(1, round(width * scale)), max(1, round(height * scale))
        return cls(
            size_wh, input_hw, scale, (round((input_w - scaled_w) / 2 - 0.1), round((input_h - scaled_h) / 2 - 0.1))
        )

    def to_input(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in original pixels -> float32 (n, 4) in pixels of the network's input."""
        offset = np.array(self.pad_xy * 2, np.float32)
        return np.asarray(boxes_xyxy, np.float32) * np.float32(self.scale) + offset

    def to_original(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in pixels of the network's input -> float32 (n, 4) in original pixels, clipped to the image."""
        offset = np.array(self.pad_xy * 2, np.float32)
        boxes = (np.asarray(boxes_xyxy, np.float32) - offset) / np.float32(self.scale)
        return np.clip(boxes, 0, np.array(self.size_wh * 2, np.float32))


def read_rgb(path: str | Path) -> np.ndarray:
    """An image as RGB, turned upright as its EXIF orientation says.

    Args:    path: a file of any format that Pillow reads; 16-bit grey is brought to 8 bits, transparency is dropped.
    Returns: uint8 (h, w, 3).
    Raises:  DataError: no such file, no image, damaged or truncated, or pixels that RGB cannot show.
    """
    try:
        with Image.open(path) as image:
            turn = _UPRIGHT.get(_orientation(image))
            if image.mode in ("I", "F"):
                raise DataError(f"`{path}` has 32-bit pixels, whose range nothing states: save it with 8 bits.")
            is_deep = image.mode.startswith("I;16")  # Pillow's own conversion would clip at 255
            rgb = (Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_deep else image).convert("RGB")
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    return np.array(rgb if turn is None else rgb.transpose(turn))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header: for lists of many images.

    A truncated file is found too: a JPEG or PNG by its missing end mark, other formats by decoding them. Damage in the
    middle of a file shows only when `read_rgb` decodes it.

    Returns: (width, height) in pixels, as of what `read_rgb` returns.
    Raises:  DataError: no such file, no image, or truncated.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = _orientation(image) in _SIDEWAYS
            mark = _END_MARKS.get(image.format or "")
            if mark is None or mark not in _tail(path):
                image.load()  # not all there, or a format that only this tells: the decoder decides
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    return (height, width) if sideways else (width, height)


def letterbox(image: np.ndarray, size: int | tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """An image scaled to fit the network's input, up or down, and centred on grey.

    Args:    image: uint8 (h, w, 3).
             size: side of a square input, or its (height, width), in pixels.
    Returns: uint8 (height, width, 3), and the `Letterbox` that takes boxes there and back.
    Raises:  DataError: the image is not uint8 (h, w, 3), or has no pixels.
    Source:  ultralytics' LetterBox, with its rounding; Pillow's bilinear filter, which averages when it shrinks.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"an image must be uint8 (height, width, 3). Received: {image.dtype} {image.shape}.")
    input_h, input_w = (size, size) if isinstance(size, int) else size
    height, width = image.shape[:2]
    placed = Letterbox.of((width, height), (input_h, input_w))
    scaled_w, scaled_h = max(1, round(width * placed.scale)), max(1, round(height * placed.scale))
    left, top = placed.pad_xy
    if (scaled_w, scaled_h) != (width, height):
        image = np.asarray(Image.fromarray(image).resize((scaled_w, scaled_h), Image.Resampling.BILINEAR))
    padded = np.full((input_h, input_w, 3), PAD_GREY, np.uint8)  # (input_h, input_w, 3)
    padded[top : top + scaled_h, left : left + scaled_w] = image
    return padded, placed


def find_images(source: str | Path) -> list[Path]:
    """The images that a file, a folder (not the folders in it) or a glob pattern names, sorted.

    Raises:  DataError: there is no such place, or no image in it.
    """
    return find_files(source, IMAGE_SUFFIXES, "image")


def find_files(source: str | Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """The files with one of these suffixes that a folder or a glob pattern names, sorted; or the file that it is.

    Args:    source: a file, a folder (the folders in it are left out), or a glob pattern.
             suffixes: in lower case, with the dot.
             what: what they are, for errors.
    Raises:  DataError: there is no such place, or no such file in it.
    """
    place = Path(source).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = list(place.iterdir())
        cure = f"Give a folder that holds some, or a pattern such as '{place}/**/*.jpg'."
    elif glob.has_magic(str(source)):
        found = [Path(name) for name in glob.glob(str(place), recursive=True)]
        cure = "Check the pattern."
    else:
        raise DataError(f"`{source}`: no such file or folder. Give an {what}, a folder of them, or a glob pattern.")
    files = sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise DataError(f"`{source}` has no {what} ({' '.join(suffixes)}). {cure}")
    return files


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from what stands before the pixels. (Pillow's PNG class would decode them to look behind.)"""
    return int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))


def _tail(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read()


def _unreadable(path: str | Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"`{path}`: no such image. Check the path.")
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format, or its beginning is damaged"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"`{path}` cannot be read as an image: {reason}. Replace the file.")
