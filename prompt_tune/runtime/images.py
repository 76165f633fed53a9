"""Images: reading them upright as RGB, and letterboxing to the network's input and back."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from prompt_tune.errors import DataError
from prompt_tune.runtime.image_files import unread_picture
from prompt_tune.runtime.opening import UNNAMED, opened, reduce_jpeg

PAD_GREY = 114  # ultralytics' letterbox colour, which YOLO-World was trained with
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
_TAIL_BYTES = 65_536  # cameras append some bytes after the end mark, and a PNG may have its EXIF data before it
_REASON = 200  # characters of what a decoder says


@dataclass(frozen=True, eq=False)
class Picture:
    """The pixels of an image, which for very large JPEGs are reduced, see `read_picture`.

    Attributes:
        pixels: uint8 (h, w, 3) RGB, upright.
        size_wh: Width and height of the original image in pixels: what boxes refer to.
    """

    pixels: np.ndarray
    size_wh: tuple[int, int]

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Picture":
        """An array (h, w, 3) in its own size."""
        return cls(pixels, (pixels.shape[1], pixels.shape[0]))

    @property
    def is_whole(self) -> bool:
        """Whether the pixels are those of the original."""
        return self.pixels.shape[1::-1] == self.size_wh


ImageInput = np.ndarray | str | Path | Image.Image | Picture


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


@dataclass(frozen=True, eq=False)
class Letterboxed:
    """An image that is ready for the network, see `Detector.letterboxed`.

    Attributes:
        pixels: uint8 (h, w, 3), the network's input.
        placed: Where the image lies in it.
    """

    pixels: np.ndarray
    placed: Letterbox


def to_picture(image: ImageInput, *, bgr: bool = False) -> Picture:
    """An image in any form that `Detector.detect` takes, for the network: a path as in `read_picture`, else `to_rgb`.

    Args:
        image: See `to_rgb`.
        bgr: See `to_rgb`.

    Raises:
        DataError: The image cannot be read, or is something else.
    """
    if isinstance(image, Picture):
        return image
    return read_picture(image) if isinstance(image, (str, Path)) else Picture.of(to_rgb(image, bgr=bgr))


def to_rgb(image: ImageInput, *, bgr: bool = False) -> np.ndarray:
    """An image in any form that `Detector.detect` takes, as RGB in its own size.

    Args:
        image: A path, see `read_rgb`; a PIL image, which is turned upright as its EXIF orientation says; a uint8
            (h, w, 3) array; or a `Picture` that was read whole.
        bgr: Whether an array is BGR, as OpenCV gives it, and not RGB.

    Returns:
        uint8 (h, w, 3).

    Raises:
        DataError: The image cannot be read, or is something else.
    """
    if isinstance(image, Picture):
        if not image.is_whole:
            raise DataError("A picture that was reduced when it was read has no pixels of its own size. Read it whole.")
        return image.pixels
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(_checked(image)[:, :, ::-1]) if bgr else _checked(image)
    if isinstance(image, (str, Path)):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "")
        place = f"`{name}`" if name else "A PIL image"
        try:
            return _upright_rgb(image, place)
        except Exception as error:
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
    """An image file as RGB in its own size, turned upright as its EXIF orientation says.

    Args:
        path: A file in one of `opening.FORMATS`; of several frames, the first. 16-bit grey is reduced to 8 bits,
            transparency is dropped.

    Returns:
        uint8 (h, w, 3).

    Raises:
        DataError: The file is missing, not an image, damaged, truncated or above `opening.max_megapixels`, or has
            pixels that do not fit RGB.
    """
    return _read(path, whole=True).pixels


def read_picture(path: str | Path, *, whole: bool = False) -> Picture:
    """An image file for the network, which scales it down: like `read_rgb`, but with less memory for a large JPEG.

    A JPEG of more than `opening.WHOLE_MEGAPIXELS` is decoded at 1/2, 1/4 or 1/8 of its width and height, see
    `opening.reduce_jpeg`.

    Args:
        path: See `read_rgb`.
        whole: Whether to decode every image in its own size, as slices need it.

    Raises:
        DataError: See `read_rgb`.
    """
    return _read(path, whole=whole)


def decode_picture(content: bytes, *, whole: bool = False, max_megapixels: int | None = None) -> Picture:
    """Like `read_picture`, from the content of a file.

    Args:
        content: Of an image file, in one of `opening.FORMATS`.
        whole: See `read_picture`.
        max_megapixels: A limit in place of `opening.max_megapixels`.
    """
    return _read(content, whole=whole, limit=max_megapixels)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, from its header: for long lists of images.

    Truncated files are found too: a JPEG or PNG by its missing end mark, other formats by decoding. Damage in the
    middle of a file shows only when `read_rgb` decodes it.

    Returns:
        (width, height) in pixels of what `read_rgb` returns.

    Raises:
        DataError: The file is missing, not an image, truncated, or above `opening.max_megapixels`.
    """
    try:
        with opened(path) as image:
            mark = _END_MARKS.get(image.format or "")
            if mark is None or mark not in (tail := _tail(path)) or (image.format == "PNG" and _has_late_tag(tail)):
                image.load()  # truncated, or a format without end mark: the decoder decides
            sideways = _orientation(image) in _SIDEWAYS
            width, height = image.size  # only now: loading turns a TIFF
    except Exception as error:
        raise _unreadable(f"`{path}`", error) from error
    return (height, width) if sideways else (width, height)


def save_image(path: Path, image: Image.Image, *, quality: int) -> None:
    """Write an image in the format that the file's suffix names, see `encoded`.

    Raises:
        DataError: The format cannot hold it.
        OSError: The file cannot be written.
    """
    path.write_bytes(encoded(image, path.suffix, quality=quality))


def encoded(image: Image.Image, suffix: str, *, quality: int) -> bytes:
    """An image as the content of a file.

    It is encoded in memory: when Pillow writes a JPEG to a full disk, it drops the rest without an error.

    Args:
        image: The image.
        suffix: Of the file; it names the format.
        quality: Of formats that lose something, in 1..100.

    Raises:
        DataError: The format cannot hold it, such as WebP one with a side of more than 16,383 pixels.
    """
    content = io.BytesIO()
    try:
        image.save(content, Image.registered_extensions()[suffix.lower()], quality=quality)
    except Exception as error:  # of any class, as when decoding
        size = f"{image.width} x {image.height} pixels"
        raise DataError(f"{size} cannot be written as {suffix}: {str(error)[:_REASON]}. Give a smaller one.") from error
    return content.getvalue()


def letterbox(image: np.ndarray | Picture, size: int | tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """An image, scaled up or down to fit the network's input, and centred on grey.

    Args:
        image: uint8 (h, w, 3); or a `Picture`, which is placed as its original would be.
        size: Side of a square input, or its (height, width), in pixels.

    Returns:
        uint8 (height, width, 3), and the `Letterbox` that converts boxes, to pixels of the original image.

    Raises:
        DataError: The image is not uint8 (h, w, 3), or has no pixels.

    Source: ultralytics' LetterBox, with its rounding. The filter is Pillow's bilinear one, which averages when it
    shrinks.
    """
    picture = image if isinstance(image, Picture) else Picture.of(_checked(image))
    input_h, input_w = (size, size) if isinstance(size, int) else size
    width, height = picture.size_wh
    placed = Letterbox.of((width, height), (input_h, input_w))
    scaled_w, scaled_h = max(1, round(width * placed.scale)), max(1, round(height * placed.scale))
    left, top = placed.pad_xy
    pixels = picture.pixels
    if (scaled_h, scaled_w) != pixels.shape[:2]:
        pixels = np.asarray(Image.fromarray(pixels).resize((scaled_w, scaled_h), Image.Resampling.BILINEAR))
    padded = np.full((input_h, input_w, 3), PAD_GREY, np.uint8)  # (input_h, input_w, 3)
    padded[top : top + scaled_h, left : left + scaled_w] = pixels
    return padded, placed


def _checked(image: np.ndarray) -> np.ndarray:
    """Refuse an array that is not uint8 (h, w, 3) with pixels."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(
            f"An image array must be uint8 (height, width, 3). Received: {image.dtype} {image.shape}. Convert it, and "
            "give several images as a list."
        )
    return image


def _read(source: str | Path | bytes, *, whole: bool, limit: int | None = None) -> Picture:
    """A file, or the content of one; a very large JPEG at reduced size unless it is wanted `whole`."""
    place = UNNAMED if isinstance(source, bytes) else f"`{source}`"
    try:
        with opened(source, limit=limit) as image:
            width, height = image.size
            if not whole:
                reduce_jpeg(image)
            if image.size == (width, height):
                return Picture.of(_upright_rgb(image, place))
            sideways = _orientation(image) in _SIDEWAYS
            return Picture(_upright_rgb(image, place), (height, width) if sideways else (width, height))
    except Exception as error:
        raise _unreadable(place, error) from error


def _upright_rgb(image: Image.Image, place: str) -> np.ndarray:
    """The pixels of an image that errors call `place`: uint8 (h, w, 3)."""
    image.load()  # before the orientation is asked for: a PNG may have it behind its pixels
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode in ("I", "F"):
        raise DataError(f"{place} has 32-bit pixels of unknown range. Save it with 8 bits per channel.")
    is_deep = image.mode.startswith("I;16")  # Pillow's own conversion would clip at 255
    shallow = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if is_deep else image
    rgb = shallow if shallow.mode == "RGB" else shallow.convert("RGB")
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is left to apply; 1 if there is none or it is broken.

    Pillow turns a TIFF itself when it loads it, but not one that it maps into memory (13.0 mixes up its rows), so files
    are opened here and not by Pillow. Its PNG class would decode the pixels to look behind them: `image_size` asks for
    that where there is something.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # of any class, as for damaged pixels: the tag is broken
        return 1
    return value if isinstance(value, int) else 1


def _tail(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read()


def _has_late_tag(tail: bytes) -> bool:
    """Whether the end of a PNG may have EXIF data: its own chunk, ImageMagick's, or XMP."""
    return any(mark in tail for mark in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"))


def _unreadable(place: str, error: Exception) -> DataError:
    """The line for whatever a decoder raised: Pillow and the libraries below it say nowhere what that can be."""
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{place}: no such image. Check the path.")
    if isinstance(error, UnidentifiedImageError):
        cure = unread_picture(Path(place.strip("`")))
        reason = "not an image of a known format, or its beginning is damaged"
        if cure:
            return DataError(f"{place} cannot be read as an image: {cure}.")
    elif isinstance(error, MemoryError):
        reason = "it does not fit into the memory that is free"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
    return DataError(f"{place} cannot be read as an image: {reason}. Replace the file.")
