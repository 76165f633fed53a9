"""Images: found, read upright, measured without decoding, letterboxed and back."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from prompt_tune.errors import DataError
from prompt_tune.runtime.images import PAD_GREY, find_images, image_size, letterbox, read_rgb

KIT = runpy.run_path(str(ROOT / "export" / "python" / "detect.py"))
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_rgb_exif_orientation_is_applied_and_size_agrees(
    tmp_path: Path, pixels: np.ndarray, orientation: int
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
    for suffix, tolerance in ((".png", 0), (".jpg", 12), (".tif", 0), (".webp", 0)):
        path = tmp_path / f"{orientation}{suffix}"
        options = {"lossless": True} if suffix == ".webp" else {"quality": 95}
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
        read = read_rgb(path)
        assert read.shape == pixels.shape
        assert np.abs(read.astype(int) - pixels).max() <= tolerance
        assert image_size(path) == (WIDTH, HEIGHT)
        assert np.array_equal(KIT["read_image"](path), read)  # the Python kit agrees


def test_broken_orientation_means_none(tmp_path: Path, pixels: np.ndarray) -> None:
    text = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\2x\0\0\0\0\0\0\0"
    for name, exif in {"rubbish": b"Exif\0\0XX*\0rubbish", "text": text}.items():
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(pixels).save(path, exif=exif)
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


def test_find_images_file_folder_and_glob_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "deeper/c.webp", "odd[1].png"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png", "odd[1].png"]
    assert find_images(tmp_path / "odd[1].png") == [tmp_path / "odd[1].png"]
    assert [path.name for path in find_images(f"{tmp_path}/**/*")] == ["a.JPG", "b.png", "c.webp", "odd[1].png"]


def test_find_images_nothing_there_raises(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source, message in (
        (tmp_path, "has no image"),
        (f"{tmp_path}/*.png", "has no image"),
        ("gone", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            find_images(source)


def test_find_images_of_several_places_gives_each_image_once_in_order(tmp_path: Path, pixels: np.ndarray) -> None:
    for name in ("x/b.png", "x/a.png", "y/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    places: list[str | Path] = [
        tmp_path / "y",
        tmp_path / "x" / "b.png",
        str(tmp_path / "x"),
        tmp_path / "x" / ".." / "y" / "c.png",
    ]
    assert [path.name for path in find_images(places)] == ["c.png", "b.png", "a.png"]
    (tmp_path / "x" / "twin.png").symlink_to("a.png")
    assert [path.name for path in find_images([tmp_path / "x", tmp_path / "x"])] == ["a.png", "b.png", "twin.png"]
    with pytest.raises(DataError, match=r"nowhere`: no such file or folder"):
        find_images([tmp_path / "y", tmp_path / "nowhere"])
    with pytest.raises(DataError, match="No image was given"):
        find_images([])


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


def test_find_images_leaves_out_what_computers_add(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".hidden.png", "B.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [path.name for path in find_images(tmp_path)] == ["B.PNG", "a.png"]


def test_find_images_in_a_folder_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of root may read everything, so the system's refusal is put in its place."""

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied\. Allow reading it\.$"):
        find_images(tmp_path)
