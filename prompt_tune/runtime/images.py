"""Images: finding files, reading them upright as RGB, and letterboxing to the network's input and back."""

import glob
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from prompt_tune.errors import DataError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PAD_GREY = 114  # ultralytics' letterbox colour, which YOLO-World was trained with
# what Pillow's decoders raise for files that are damaged, truncated, far too large, or not images
_METADATA = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # by EXIF orientation: the operation that turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # near the end of every complete file
_TAIL_BYTES = 4096  # cameras append some bytes after the end mark
ImageInput = np.ndarray | str | Path | Image.Image
Places = str | Path | Sequence[str | Path]  # where images are: one path or pattern, or several


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input, to convert boxes between the two frames.

    Attributes:
        size_wh: Width and height of the original image in pixels.
        input_hw: Height and width of the network's input in pixels.
        scale: Input pixels per original pixel.
        pad_xy: Number of grey columns on the left and of grey rows above.
    """

    size_wh: tuple[int, int]
    input_hw: tuple[int, int]
    scale: float
    pad_xy: tuple[int, int]

    @classmethod
    def of(cls, size_wh: tuple[int, int], input_hw: tuple[int, int]) -> "Letterbox":
        """Where `letterbox` places an image of this size."""
        (width, height), (input_h, input_w) = size_wh, input_hw
        scale = min(input_h / height, input_w / width)
        scaled_w, scaled_h = max(1, round(width * scale)), max(1, round(height * scale))
        return cls(
            size_wh, input_hw, scale, (round((input_w - scaled_w) / 2 - 0.1), round((input_h - scaled_h) / 2 - 0.1))
        )

    def to_input(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in original pixels, converted to pixels of the network's input: float32 (n, 4)."""
        offset = np.array(self.pad_xy * 2, np.float32)
        return np.asarray(boxes_xyxy, np.float32) * np.float32(self.scale) + offset

    def to_original(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) in pixels of the network's input, converted to original pixels and clipped: float32 (n, 4)."""
        offset = np.array(self.pad_xy * 2, np.float32)
        boxes = (np.asarray(boxes_xyxy, np.float32) - offset) / np.float32(self.scale)
        return np.clip(boxes, 0, np.array(self.size_wh * 2, np.float32))


def to_rgb(image: ImageInput, *, bgr: bool = False) -> np.ndarray:
    """An image in any form that `Detector.detect` takes, as RGB.

    Args:
        image: A path, see `read_rgb`; a PIL image, which is turned upright as its EXIF orientation says; or a uint8
            (h, w, 3) array.
        bgr: Whether an array is BGR, as OpenCV gives it, and not RGB.

    Returns:
        uint8 (h, w, 3).

    Raises:
        DataError: The image cannot be read, or is something else.
    """
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(_checked(image)[:, :, ::-1]) if bgr else _checked(image)
    if isinstance(image, (str, Path)):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "")
        place = f"`{name}`" if name else "A PIL image"
        try:
            return _upright_rgb(image, place)
        except _DECODE_ERRORS as error:
            raise _unreadable(place, error) from error
    cure = "Convert it first."
    if image is None:
        cure = "`cv2.imread` returns None for a file that it cannot read: check the path."
    elif isinstance(image, (bytes, bytearray, memoryview)):
        cure = "Decode it first: PIL.Image.open(io.BytesIO(data))."
    raise DataError(
        f"An image must be a path, a PIL image or a uint8 (height, width, 3) RGB array. Received: "
        f"{type(image).__name__}. {cure}"
    )


def read_rgb(path: str | Path) -> np.ndarray:
    """An image file as RGB, turned upright as its EXIF orientation says.

    Args:
        path: A file in any format that Pillow reads. 16-bit grey is reduced to 8 bits, transparency is dropped.

    Returns:
        uint8 (h, w, 3).

    Raises:
        DataError: The file is missing, not an image, damaged or truncated, or has pixels that do not fit RGB.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # see `_orientation`
            return _upright_rgb(image, f"`{path}`")
    except _DECODE_ERRORS as error:
        raise _unreadable(f"`{path}`", error) from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, from its header: for long lists of images.

    Truncated files are found too: a JPEG or PNG by its missing end mark, other formats by decoding. Damage in the
    middle of a file shows only when `read_rgb` decodes it.

    Returns:
        (width, height) in pixels of what `read_rgb` returns.

    Raises:
        DataError: The file is missing, not an image, or truncated.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:  # see `_orientation`
            sideways = _orientation(image) in _SIDEWAYS
            mark = _END_MARKS.get(image.format or "")
            if mark is None or mark not in _tail(path):
                image.load()  # truncated, or a format without end mark: the decoder decides
            width, height = image.size  # only now: loading turns a TIFF
    except _DECODE_ERRORS as error:
        raise _unreadable(f"`{path}`", error) from error
    return (height, width) if sideways else (width, height)


def save_image(path: Path, image: Image.Image, *, quality: int) -> None:
    """Write an image in the format that the file's suffix names.

    It is encoded in memory first: when Pillow writes a JPEG to a full disk, it drops the rest without an error.

    Args:
        path: The file to write.
        image: The image.
        quality: Of formats that lose something, in 1..100.

    Raises:
        OSError: The file cannot be written.
    """
    content = io.BytesIO()
    image.save(content, Image.registered_extensions()[path.suffix.lower()], quality=quality)
    path.write_bytes(content.getvalue())


def letterbox(image: np.ndarray, size: int | tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """An image, scaled up or down to fit the network's input, and centred on grey.

    Args:
        image: uint8 (h, w, 3).
        size: Side of a square input, or its (height, width), in pixels.

    Returns:
        uint8 (height, width, 3), and the `Letterbox` that converts boxes.

    Raises:
        DataError: The image is not uint8 (h, w, 3), or has no pixels.

    Source: ultralytics' LetterBox, with its rounding. The filter is Pillow's bilinear one, which averages when it
    shrinks.
    """
    _checked(image)
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


def as_places(source: Places) -> list[str | Path]:
    """One path or pattern as a list of one; several as a list."""
    return [source] if isinstance(source, (str, Path)) else list(source)


def is_metadata(name: str) -> bool:
    """Whether a file or folder of this name is hidden or was put there by a computer, so that it is no data."""
    return name.startswith(".") or name.lower() in _METADATA


def find_images(source: Places) -> list[Path]:
    """The images that paths or patterns name: those of each one sorted, and each image once.

    Args:
        source: An image file, a folder (without its subfolders), or a glob pattern; or several of them.

    Raises:
        DataError: There is no such file or folder, or one of them has no images.
    """
    return find_all(as_places(source), IMAGE_SUFFIXES, "image")


def find_all(sources: Sequence[str | Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files of several sources, see `find_files`: in the order given, and each file once.

    Raises:
        DataError: There are no sources, or one of them has no such files.
    """
    if not sources:
        raise DataError(f"No {what} was given. Give at least one, a folder of them, or a glob pattern.")
    found = [path for source in sources for path in find_files(source, suffixes, what)]
    by_place: dict[Path, Path] = {}
    for path in found:
        by_place.setdefault(path.parent.resolve() / path.name, path)  # links to one file are files of their own
    return list(by_place.values())


def find_files(source: str | Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """The files with certain suffixes that a path or pattern names, sorted.

    Args:
        source: A file with any suffix, a folder (without its subfolders), or a glob pattern. Hidden files and what
            computers add to folders (`._*`, `Thumbs.db`, ...) are left out.
        suffixes: In lower case, with the dot.
        what: What the files are, as the error names them.

    Raises:
        DataError: There is no such file or folder, or it has no such files.
    """
    place = Path(source).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        try:
            found = list(place.iterdir())
        except OSError as error:
            raise DataError(f"`{source}` cannot be read: {error.strerror}. Allow reading it.") from error
        cure = f"Give a folder that has some, or a pattern such as '{place}/**/*.jpg'."
    elif glob.has_magic(str(source)):
        found = [Path(name) for name in glob.glob(str(place), recursive=True)]
        cure = "Check the pattern."
    else:
        raise DataError(f"`{source}`: no such file or folder. Give an {what}, a folder of them, or a glob pattern.")
    files = sorted(
        path for path in found if path.suffix.lower() in suffixes and path.is_file() and not is_metadata(path.name)
    )
    if not files:
        raise DataError(f"`{source}` has no {what} ({' '.join(suffixes)}). {cure}")
    return files


def _checked(image: np.ndarray) -> np.ndarray:
    """Refuse an array that is not uint8 (h, w, 3) with pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(
            f"An image array must be uint8 (height, width, 3). Received: {image.dtype} {image.shape}. Convert it, and "
            "give several images as a list."
        )
    return image


def _upright_rgb(image: Image.Image, place: str) -> np.ndarray:
    """The pixels of an image that errors call `place`: uint8 (h, w, 3)."""
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F"):
        raise DataError(f"{place} has 32-bit pixels of unknown range. Save it with 8 bits per channel.")
    is_deep = image.mode.startswith("I;16")  # Pillow's own conversion would clip at 255
    rgb = (Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_deep else image).convert("RGB")
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is left to apply, if it comes before the pixels; 1 if there is none or it is broken.

    Pillow turns a TIFF itself when it loads it, but not one that it maps into memory (13.0 mixes up its rows), so files
    are opened here and not by Pillow. Its PNG class would decode the pixels to look behind them.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _tail(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read()


def _unreadable(place: str, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{place}: no such image. Check the path.")
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image of a known format, or its beginning is damaged"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{place} cannot be read as an image: {reason}. Replace the file.")
