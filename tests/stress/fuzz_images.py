"""Damaged pictures: each is refused with a `DataError` of one line, or decoded, and a command shows no warning.

python tests/stress/fuzz_images.py --cases 100000 --seed 1
"""

import io
import random
import sys
import warnings
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, features
from stress.cases import FaultError, check_error, fuzz
from stress.mutate import mutate_bytes

from prompt_tune.errors import DataError
from prompt_tune.runtime.images import image_size, read_rgb

SIZE_WH = (37, 23)
SUFFIXES = (".png", ".jpg", ".webp", ".bmp", ".tif", ".gif", ".ppm", ".jp2")  # whatever the content is


def check(rng: random.Random, folder: Path) -> str:
    """One file."""
    name, data = rng.choice(bases())
    path = folder / f"case{rng.choice(SUFFIXES) if rng.random() < 0.2 else name}"
    path.write_bytes(mutate_bytes(rng, data))
    try:
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # as the command line has it
            size = _read(image_size, path)
            pixels = _read(read_rgb, path)
    finally:
        path.unlink()
    # Pillow's notes on damaged EXIF data are for programs; the command line does not show them
    if bad := [note for note in shown if note.category is not UserWarning]:
        raise FaultError(f"{bad[0].category.__name__}: {bad[0].message!s:.200}")
    if pixels is None:
        return "refused" if size is None else "refused when it was decoded"
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise FaultError(f"pixels of another kind: {type(pixels)}")
    if size is not None and size != pixels.shape[1::-1]:
        raise FaultError(f"`image_size` says {size}, but `read_rgb` gives {pixels.shape}")
    return "decoded"


def _read(read: object, path: Path) -> object:
    """What a reader returns, or None if it refuses the file."""
    try:
        return read(path)  # type: ignore[operator]
    except DataError as error:
        check_error(error)
        return None


@cache
def bases() -> tuple[tuple[str, bytes], ...]:
    """A picture in each format and mode."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (*SIZE_WH[::-1], 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 2**16 - 1, SIZE_WH[::-1], np.uint16))
    made: list[tuple[str, Image.Image, dict[str, object]]] = [
        (".png", picture, {}),
        (".png", picture.quantize(16), {"exif": turned}),
        (".png", picture.convert("RGBA"), {"save_all": True, "append_images": [picture.convert("RGBA")]}),
        (".png", deep, {}),
        (".jpg", picture, {"exif": turned}),
        (".jpg", picture, {"progressive": True}),
        (".jpg", picture.convert("CMYK"), {}),
        (".jpg", picture.convert("L"), {}),
        (".bmp", picture, {}),
        (".bmp", picture.quantize(16), {}),
        (".tif", picture, {"exif": turned}),
        (".tif", picture, {"compression": "tiff_lzw"}),
        (".tif", deep, {"compression": "tiff_adobe_deflate"}),
        (".gif", picture.quantize(16), {"save_all": True, "append_images": [picture.quantize(8)]}),
        (".ppm", picture, {}),
        (".pgm", deep, {}),
    ]
    made += [(".webp", picture, {}), (".webp", picture, {"lossless": True})] if features.check("webp") else []
    made += [(".jp2", picture, {})] if features.check("jpg_2000") else []
    made += [(".avif", picture, {})] if features.check("avif") else []
    files = []
    for suffix, image, options in made:
        file = io.BytesIO()
        name = {".jpg": "JPEG", ".tif": "TIFF", ".jp2": "JPEG2000", ".ppm": "PPM", ".pgm": "PPM"}.get(
            suffix, suffix[1:]
        )
        image.save(file, format=name.upper(), **options)
        files.append((suffix, file.getvalue()))
    return tuple(files)


if __name__ == "__main__":
    sys.exit(fuzz(__doc__, check, cases=10_000))
