"""Small pictures of every format, and damage done to them."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

SIZE_WH = (24, 16)


def small_pictures() -> dict[str, bytes]:
    """Files of every format that is read, in several kinds, by a name that ends in the format's suffix."""
    y, x = np.mgrid[0 : SIZE_WH[1], 0 : SIZE_WH[0]]
    image = Image.fromarray(np.stack([x * 10, y * 15, 255 - x], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    second = {"save_all": True, "append_images": [Image.new("RGB", SIZE_WH)]}
    made: tuple[tuple[str, Image.Image, str, dict[str, Any]], ...] = (
        ("plain.avif", image, "AVIF", {}),
        ("plain.bmp", image, "BMP", {}),
        ("palette.bmp", image.convert("P"), "BMP", {}),
        ("plain.gif", image, "GIF", {}),
        ("frames.gif", image, "GIF", second),
        ("plain.jpg", image, "JPEG", {"exif": exif}),
        ("progressive.jpg", image, "JPEG", {"progressive": True}),
        ("cmyk.jpg", image.convert("CMYK"), "JPEG", {}),
        ("plain.jp2", image, "JPEG2000", {}),
        ("stream.j2k", image, "JPEG2000", {"no_jp2": True}),
        ("plain.mpo", image, "MPO", second | {"exif": exif}),
        ("plain.png", image, "PNG", {"exif": exif}),
        ("palette.png", image.convert("P"), "PNG", {"transparency": 0}),
        ("deep.png", Image.fromarray(x.astype(np.uint16) * 900), "PNG", {}),
        ("frames.png", image, "PNG", second),
        ("plain.ppm", image, "PPM", {}),
        ("bits.pbm", image.convert("1"), "PPM", {}),
        ("plain.tif", image, "TIFF", {"exif": exif}),
        *((f"{name}.tif", image, "TIFF", {"compression": name}) for name in ("tiff_lzw", "jpeg", "packbits")),
        ("deflate.tif", image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("fax.tif", image.convert("1"), "TIFF", {"compression": "group4"}),
        ("deep.tif", Image.fromarray(x.astype(np.uint16) * 900), "TIFF", {}),
        ("plain.webp", image, "WEBP", {"exif": exif}),
        ("lossless.webp", image.convert("RGBA"), "WEBP", {"lossless": True}),
        ("frames.webp", image, "WEBP", second),
    )
    files = {}
    for name, picture, format_, options in made:
        content = io.BytesIO()
        picture.save(content, format_, **options)
        files[name] = content.getvalue()
    files["words.pgm"] = b"P2\n# a comment\n3 2\n255\n0 1 2\n3 4 5\n"
    return files


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with some of it changed, cut off, left out, repeated, or with large numbers in it.

    Half of the damage is done to the first 64 bytes, where most formats have their header.
    """
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        end = min(64, len(data)) if rng.random() < 0.5 else len(data)
        place = int(rng.integers(max(1, end)))
        length = int(rng.integers(1, 17))
        kind = rng.integers(6)
        if kind == 0:
            data[place : place + 1] = rng.bytes(1)
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length]
        else:
            numbers = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80")
            number = numbers[rng.integers(len(numbers))]
            data[place : place + len(number)] = number
    return bytes(data)


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged pictures, each with a name, of every kind in turn."""
    rng = np.random.default_rng(seed)
    pictures = list(small_pictures().items())
    for k in range(count):
        name, content = pictures[k % len(pictures)]
        yield f"{k}-{name}", damaged(content, rng)
