"""Images: found, read upright, measured without decoding, letterboxed and back."""

import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from PIL import Image
from places import ROOT

from prompt_tune.errors import DataError
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, find_images
from prompt_tune.runtime.images import (
    PAD_GREY,
    Picture,
    decode_picture,
    image_size,
    letterbox,
    read_picture,
    read_rgb,
)

KIT = vars(kit.module("kit_images"))
WIDTH, HEIGHT = 90, 60


@pytest.fixture
def pixels() -> np.ndarray:
    """Smooth colours, so that a JPEG keeps them: uint8 (60, 90, 3)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 2, y * 3, 255 - x], axis=2).astype(np.uint8)


def test_read_rgb_lossless_formats_give_the_pixels(tmp_path: Path, pixels: np.ndarray) -> None:
    for suffix in (".png", ".bmp", ".tif"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(pixels).save(path)
        np.testing.assert_array_equal(read_rgb(path), pixels)


def test_read_rgb_other_modes_give_rgb(tmp_path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1"):
        path = tmp_path / f"{mode}.tif"
        (image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)).save(path)
        read = read_rgb(path)
        assert read.shape == (HEIGHT, WIDTH, 3), mode
        assert read.dtype == np.uint8, mode


def test_read_rgb_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)  # (16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png")[..., 1].ravel(), np.arange(256))


def test_read_rgb_float_pixels_raises(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="32-bit pixels"):
        read_rgb(tmp_path / "f.tif")


FORMATS: dict[
    str, tuple[dict[str, Any], int]
] = {  # that hold an orientation: what a file of each is saved with, and how far its colours may be off
    ".png": ({}, 0),
    ".jpg": ({"quality": 95}, 12),
    ".jfif": ({"quality": 95}, 12),
    ".jpe": ({"quality": 95}, 12),
    ".mpo": ({"quality": 95}, 12),
    ".tif": ({}, 0),
    ".webp": ({"lossless": True}, 0),
    ".avif": ({"quality": 100, "subsampling": "4:4:4"}, 12),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_in_every_format_and_size_and_kit_agree(
    tmp_path: Path, pixels: np.ndarray, suffix: str, orientation: int
) -> None:
    # what a camera stores for each orientation, by the EXIF standard: row 0 and column 0 are which visual sides
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options, tolerance = FORMATS[suffix]
    path = tmp_path / f"a{suffix}"
    more = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]} if suffix == ".mpo" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(path, "JPEG" if suffix == ".jpe" else None, exif=exif, **options, **more)
    read = read_rgb(path)
    assert read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).max() <= tolerance
    assert image_size(path) == (WIDTH, HEIGHT)
    assert np.array_equal(KIT["read_image"](path), read)  # the Python kit agrees


def test_orientation_of_a_png_behind_its_pixels_is_applied(tmp_path: Path, pixels: np.ndarray) -> None:
    """The standard allows it, and exiftool and ImageMagick write it there."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    content = path.read_bytes()
    begin = content.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4])
    last = content.index(b"IEND") - 4
    path.write_bytes(content[:begin] + content[end:last] + content[begin:end] + content[last:])
    np.testing.assert_array_equal(read_rgb(path), np.rot90(pixels, -1))
    assert image_size(path) == (HEIGHT, WIDTH)
    assert np.array_equal(KIT["read_image"](path), read_rgb(path))


def exif_of(kind: int, value: bytes, count: int = 1) -> bytes:
    """EXIF data with an orientation tag of some type: little-endian, with four bytes of value."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)


BROKEN = {
    "0": exif_of(3, b"\0"),
    "9": exif_of(3, b"\x09"),
    "255": exif_of(3, b"\xff"),
    "text": exif_of(2, b"6", 2),
    "bytes": exif_of(1, b"\6"),
    "float": exif_of(11, struct.pack("<f", 6)),
    "fraction beyond the end": exif_of(5, b"\xff\xff"),
    "unknown type": exif_of(99, b"\6"),
    "count 0": exif_of(3, b"\6", 0),
    "huge count": exif_of(3, b"\6", 2**31 - 1),
    "rubbish": b"Exif\0\0XX*\0rubbish",
    **{f"cut at {place}": exif_of(3, b"\6")[:place] for place in (7, 9, 12, 15, 18, 22, 26)},
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".mpo"])
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_orientation_means_none(tmp_path: Path, pixels: np.ndarray, name: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, exif=BROKEN[name])
    assert read_rgb(path).shape == pixels.shape
    assert image_size(path) == (WIDTH, HEIGHT)
    assert np.array_equal(KIT["read_image"](path), read_rgb(path))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.8])
def test_image_size_truncated_file_raises_one_line(
    tmp_path: Path, pixels: np.ndarray, suffix: str, kept: float
) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    for reader in (image_size, read_rgb):
        with pytest.raises(DataError, match=r"cut\.\w+` cannot be read as an image: .*Replace the file\.$") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_image_size_damage_in_the_middle_shows_only_when_decoded(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert image_size(path) == (WIDTH, HEIGHT)  # the header and the end mark are there: nothing was decoded
    with pytest.raises(DataError, match=r"a\.png` cannot be read"):
        read_rgb(path)


def test_image_size_trailing_bytes_of_a_camera_are_accepted(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "trailer.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes() + bytes(10_000))
    assert image_size(path) == (WIDTH, HEIGHT)
    assert read_rgb(path).shape == (HEIGHT, WIDTH, 3)


def test_read_rgb_missing_file_folder_and_text_raise(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    for name, message in (("gone.jpg", "no such image"), ("text.jpg", "known format"), ("", "cannot be read")):
        for reader in (image_size, read_rgb):
            with pytest.raises(DataError, match=message):
                reader(tmp_path / name)


@pytest.mark.parametrize(
    ("shape_hw", "size", "scale", "pad_xy"),
    [
        ((60, 90), 90, 1.0, (0, 15)),  # fits as it is
        ((60, 90), 180, 2.0, (0, 30)),  # scaled up
        ((100, 50), (64, 96), 0.64, (32, 0)),  # height decides
        ((99, 200), 64, 0.32, (0, 16)),  # an odd rest: 32 rows of 64
        ((1, 1000), 64, 0.064, (0, 31)),  # a line keeps one pixel
    ],
)
def test_letterbox_places_the_image(
    shape_hw: tuple[int, int], size: int | tuple[int, int], scale: float, pad_xy: tuple[int, int]
) -> None:
    image = np.full((*shape_hw, 3), 200, np.uint8)
    padded, box = letterbox(image, size)
    assert padded.shape == ((size, size, 3) if isinstance(size, int) else (*size, 3))
    assert (box.pad_xy, box.size_wh, box.input_hw) == (pad_xy, shape_hw[::-1], padded.shape[:2])
    assert box.scale == pytest.approx(scale)
    inside = (padded == 200).all(axis=2)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert (columns[0], rows[0]) == pad_xy
    assert len(rows) == max(1, round(shape_hw[0] * scale))
    assert len(columns) == max(1, round(shape_hw[1] * scale))
    assert (padded[~inside] == PAD_GREY).all()


def test_letterbox_size_of_the_image_keeps_every_pixel(pixels: np.ndarray) -> None:
    padded, _ = letterbox(pixels, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(padded, pixels)


def test_letterbox_boxes_there_and_back_agree_and_are_clipped() -> None:
    rng = np.random.default_rng(0)
    _, box = letterbox(np.zeros((333, 500, 3), np.uint8), (256, 320))
    corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1)
    boxes = (corners * [500, 333]).reshape(20, 4).astype(np.float32)  # (20, 4)
    there = box.to_input(boxes)
    assert there.dtype == np.float32
    np.testing.assert_allclose(box.to_original(there), boxes, atol=1e-3)
    np.testing.assert_allclose(there[:, 0], boxes[:, 0] * 0.64, rtol=1e-5)
    np.testing.assert_allclose(there[:, 1], boxes[:, 1] * 0.64 + 21, rtol=1e-5)  # 213 of 256 rows
    np.testing.assert_array_equal(box.to_original(np.array([[-50, -50, 400, 400]])), [[0, 0, 500, 333]])


def test_letterbox_marked_pixel_lies_where_to_input_says() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[120:140, 200:220] = 255
    padded, box = letterbox(image, 150)
    x1, y1, x2, y2 = box.to_input(np.array([[200, 120, 220, 140]]))[0]
    rows, columns = np.nonzero((padded > 200).all(axis=2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_letterbox_no_rgb_image_raises(image: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"uint8 \(height, width, 3\)"):
        letterbox(image, 64)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_read_rgb_pixels_of_a_sideways_tiff_are_upright(tmp_path: Path, mode: str, compression: str | None) -> None:
    """Pillow 13 mixes up the rows of an uncompressed one that it maps into memory."""
    grey = np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))
    grey[:10] //= 2
    rgb = Image.fromarray(grey).convert("RGB")
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.tif", exif=exif, compression=compression)
    wanted = np.rot90(np.asarray(rgb), -1)
    np.testing.assert_allclose(read_rgb(tmp_path / "a.tif").astype(int), wanted.astype(int), atol=2)
    assert image_size(tmp_path / "a.tif") == (20, 30)


PILLOW_FORMATS = {".jfif": "JPEG", ".jpe": "JPEG", ".mpo": "MPO", ".j2k": "JPEG2000", ".jpx": "JPEG2000"}


@pytest.mark.parametrize("suffix", sorted(set(IMAGE_SUFFIXES) - {".heic", ".heif", ".hif"}))
def test_every_format_of_the_list_is_read_and_the_kit_agrees(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    format_ = PILLOW_FORMATS.get(suffix) or Image.registered_extensions()[suffix]
    image = Image.fromarray(pixels)
    if suffix == ".pbm":
        image = image.convert("1")
    more = {"save_all": True, "append_images": [Image.new("RGB", image.size)]} if suffix == ".gif" else {}
    image.save(path, format_, **more)
    assert find_images(tmp_path) == [path]
    assert image_size(path) == (WIDTH, HEIGHT)
    read = read_rgb(path)
    if suffix not in (".pbm", ".pgm"):
        assert np.abs(read.astype(int) - pixels).mean() < 8, "and of several frames the first"
    np.testing.assert_array_equal(KIT["read_image"](path), read)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a grey PNG of any size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\1IDAT"


def test_picture_above_the_limit_is_one_line_before_anything_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(30_000, 20_000))
    for reader in (read_rgb, image_size):
        with pytest.raises(DataError) as caught:
            reader(path)
        assert str(caught.value) == (
            f"`{path}` has 30000 x 20000 pixels, 600 megapixels. At most 500 are read, since a pixel takes up to 21 "
            "bytes of memory. Scale it down, cut it into tiles, or raise the limit: PROMPT_TUNE_MAX_MEGAPIXELS=NUMBER "
            "in the environment."
        )
    with pytest.raises(ValueError, match="600 megapixels; scale it down to at most 500"):
        KIT["read_image"](path)


def test_photo_of_200_megapixels_is_read_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own
    path = tmp_path / "big.png"
    image = Image.new("1", (16_320, 12_240))
    image.putpixel((16_319, 12_239), 1)
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (16_320, 12_240)
        read = read_rgb(path)
        assert read.shape == (12_240, 16_320, 3) and read[-1, -1].tolist() == [255] * 3 and not read[-1, -2].any()
        assert letterbox(read, 640)[1].size_wh == (16_320, 12_240)
        del read
        assert KIT["read_image"](path).size == (16_320, 12_240)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_jpeg_of_200_megapixels_is_decoded_at_half_its_size_and_keeps_its_frame(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when shown
    image = Image.new("L", (16_320, 12_240), 40)
    image.paste(200, (8_160, 0, 16_320, 12_240))
    image.save(path, exif=exif)
    del image
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(path)
    assert picture.pixels.shape == (8_160, 6_120, 3) and picture.size_wh == image_size(path) == (12_240, 16_320)
    kit_image = KIT["read_image"](path)
    assert np.array_equal(kit_image, picture.pixels) and KIT["original_size"](kit_image) == (12_240, 16_320)
    pixels, placed = letterbox(picture, 640)
    kit_placed = KIT["letterbox"](kit_image, 640)
    assert np.array_equal(kit_placed.pixels, pixels) and kit_placed.size == placed.size_wh
    assert (kit_placed.scale, kit_placed.left, kit_placed.top) == (placed.scale, *placed.pad_xy)
    whole_pixels, whole = letterbox(read_rgb(path), 640)
    assert placed == whole and placed.size_wh == (12_240, 16_320)
    np.testing.assert_allclose(pixels.astype(int), whole_pixels.astype(int), atol=2)
    boxes = placed.to_original(np.array([[320, 320, 560, 640]]))
    np.testing.assert_allclose(boxes, [[6_120, 8_160, 12_240, 16_320]], atol=0.01)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((2_000, 500), (2_000, 500)),
        ((1_001, 1_001), (501, 501)),
        ((4_000, 1_000), (2_000, 500)),
        ((5_000, 801), (1_250, 201)),
    ],
)
def test_only_jpegs_above_the_limit_are_reduced_and_as_little_as_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    monkeypatch.setattr("prompt_tune.runtime.opening.WHOLE_MEGAPIXELS", 1)
    monkeypatch.setitem(KIT, "WHOLE_MEGAPIXELS", 1)
    image = Image.effect_noise(size, 60).convert("RGB")
    for suffix in (".jpg", ".png"):
        path = tmp_path / f"a{suffix}"
        image.save(path)
        expected = wanted if suffix == ".jpg" else size
        for picture in (read_picture(path), decode_picture(path.read_bytes())):
            assert picture.pixels.shape == (expected[1], expected[0], 3) and picture.size_wh == size
        for source in (path, path.read_bytes()):
            image_of_kit = KIT["read_image"](source)
            assert image_of_kit.size == expected and KIT["original_size"](image_of_kit) == size
            assert KIT["original_size"](image_of_kit.crop((0, 0, 40, 30))) == (40, 30)
            assert KIT["read_image"](source, whole=True).size == size
        assert read_rgb(path).shape == (size[1], size[0], 3)


def test_picture_in_its_own_size_is_letterboxed_as_its_pixels_are(pixels: np.ndarray) -> None:
    (padded, placed), (wanted, same) = letterbox(Picture.of(pixels), 64), letterbox(pixels, 64)
    assert np.array_equal(padded, wanted) and placed == same


def test_heic_is_read_where_its_package_is_installed(tmp_path: Path, pixels: np.ndarray) -> None:
    """Stands in for the package with one that registers a reader of its own, in a process of its own."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile, lambda head: head[:4] == b'\\x89PNG')\n"
    )
    Image.fromarray(pixels).save(tmp_path / "a.heic", "PNG")
    code = (
        "import sys; from PIL import Image; Image.ID.clear() or Image.OPEN.clear()\n"
        "from prompt_tune.runtime.image_files import find_images\nfrom prompt_tune.runtime.images import read_rgb\n"
        "print([read_rgb(path).shape for path in find_images(sys.argv[1])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert done.stdout == "[(60, 90, 3)]\n", done.stderr


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # of Pillow, for the TIFF
def test_content_of_a_file_is_read_as_the_file_is(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.jpg", "a.tif", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        content = (tmp_path / name).read_bytes()
        assert np.array_equal(decode_picture(content).pixels, read_rgb(tmp_path / name)), name
        assert decode_picture(content).pixels.shape == (90, 60, 3)
        with pytest.raises(DataError, match=r"^The image cannot be read as an image: "):
            decode_picture(content[:100])


def test_content_above_a_limit_is_one_line_before_anything_is_decoded() -> None:
    with pytest.raises(DataError) as caught:
        decode_picture(png_header(20_000, 10_000), max_megapixels=100)
    assert str(caught.value) == (
        "The image has 20000 x 10000 pixels, 200 megapixels. At most 100 are read here. Scale it down."
    )
    with pytest.raises(
        DataError, match=r"The image has 30000 x 20000 pixels, 600 megapixels. At most 500 are read, si"
    ):
        decode_picture(png_header(30_000, 20_000))
