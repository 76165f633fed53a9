"""Runs a bundle of `prompt-tune export` with NumPy, Pillow and ONNX Runtime, to read, copy or translate.

    pip install numpy pillow onnxruntime
    python detect.py photo.jpg --draw results

Prints JSON. The detections are the same as those of `prompt-tune detect` on the CPU. It needs the files beside it:
kit_vocabulary.py reads vocabulary files, kit_images.py images, kit_detector.py runs the graph, and kit_slices.py cuts
large images.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit_detector import Detector
from kit_images import (
    HEIC,
    READ,
    UNREAD,
    WRITTEN,
    Letterboxed,
    is_special,
    letterbox,
    original_size,
    quiet_libtiff,
    read_image,
)
from kit_slices import LEAST_SLICE, MOST_OVERLAP, detect_sliced
from kit_vocabulary import Vocabulary, read_vocabulary
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Detector", "Letterboxed", "Vocabulary", "detect_sliced", "letterbox", "read_image", "read_vocabulary"]
COLOURS = {True: "#9fb3c8", False: "#ff7a1a"}  # of original and learned classes
MOST_INSET = 8  # equal boxes that are drawn inside one another
MOST_TIMES = 100  # that one folder is read, where links lead to it
METADATA = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


def load_font(file: Path | None, height: float) -> Any:
    """The font in a file, or Pillow's own, which has little more than English letters."""
    return ImageFont.truetype(file, height) if file else ImageFont.load_default(height)


def warn_of_boxes(names: list[str], file: Path | None) -> None:
    """Name the characters for which the font has no glyph: drawings show an empty box for each."""
    font = load_font(file, 32)

    def glyph(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    absent = glyph("\uffff")  # not a character: every font draws it as a missing one
    if missing := [one for one in sorted(set("".join(names))) if not one.isspace() and glyph(one) == absent]:
        say(f"The font cannot draw {' '.join(missing)}: give one that can as --font FILE.")


def apart(boxes: list[list[float]], step: float) -> list[list[float]]:
    """Boxes, the most important first, of which none hides another: one equal to an earlier one goes inside it."""
    drawn: list[list[float]] = []
    for box in boxes:
        for _ in range(MOST_INSET):
            smaller = [box[0] + step, box[1] + step, box[2] - step, box[3] - step]
            equal = any(max(abs(a - b) for a, b in zip(box, other, strict=True)) < step for other in drawn)
            if not equal or min(smaller[2] - smaller[0], smaller[3] - smaller[1]) < 2 * step:
                break
            box = smaller
        drawn.append(box)
    return drawn


def draw(image: Image.Image, found: list[dict[str, Any]], font_file: Path | None) -> Image.Image:
    """The picture with boxes: original classes thin and grey, learned ones thick and orange."""
    picture = image.copy()
    picture.info.pop("compression", None)  # of a TIFF: that of a fax takes no colours
    canvas, side = ImageDraw.Draw(picture), sum(image.size) / 2
    height = max(11, side / 42)
    font = load_font(font_file, height)
    shown = [one for one in found if not one.get("hidden")]
    share = image.width / original_size(image)[0]  # less than 1 if it was reduced
    order = sorted(shown, key=lambda one: (one["vocabulary"] != "original", one["score"]))
    thick = max(2, round(side / 200))
    boxes = [[share * value for value in one["box_xyxy"]] for one in order[::-1]]
    for one, box in zip(order, apart(boxes, thick + 2)[::-1], strict=True):
        original = one["vocabulary"] == "original"
        x1, y1, x2, y2 = box
        canvas.rectangle(
            (x1, y1, x2, y2), outline=COLOURS[original], width=max(1, round(side / 500)) if original else thick
        )
        text, place = f"{one['class']} {one['score']:.2f}", (x1, max(0, y1 - 1.3 * height))
        canvas.rectangle(canvas.textbbox(place, text, font=font), fill=COLOURS[original])
        canvas.text(place, text, font=font, fill="black")
    return picture


def find(sources: list[Path], recursive: bool, without: Path | None) -> list[Path]:
    """The pictures that files and folders name; a line names those in formats that are not read, and broken links."""
    images, left_out = [], []
    above = (os.path.realpath(without),) if without else ()
    for source in sources:
        if not os.path.isdir(source):
            images.append(source)
            continue
        files = list(walk(source, (*above, os.path.realpath(source)), recursive))
        images += [path for path in files if path.suffix.lower() in READ and os.path.isfile(path)]
        left_out += [path for path in files if path.suffix.lower() in UNREAD or not os.path.exists(path)]
        left_out += [path for path in files if path.suffix.lower() in READ and is_special(path)]
    if left_out:
        named = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        cure = (
            "; pip install pillow-heif reads HEIC"
            if any(path.suffix.lower() in HEIC - READ for path in left_out)
            else ""
        )
        say(f"{len(left_out)} not looked at, not readable (save as PNG or JPEG{cure}): {named}")
    if not images:
        raise SystemExit(f"{sources[0]}: no image is there.")
    return list({Path(os.path.realpath(path.parent), path.name): path for path in reversed(images)}.values())[::-1]


def walk(folder: Path, above: tuple[str, ...], recursive: bool) -> Iterator[Path]:
    """Everything below a folder that is neither a folder nor hidden; links are followed, but not into `above`."""
    times: dict[str, int] = {}  # that a folder was read, since there can be endless ways of links to it
    left = [(folder, iter(sorted(os.listdir(folder))), above)]
    while left:
        here, names, above = left[-1]
        if (name := next(names, None)) is None:
            left.pop()
            continue
        path = here / name
        if name.startswith(".") or name.lower() in METADATA:
            continue
        if not os.path.isdir(path):
            yield path
        elif recursive and (real := real_path(above[-1], name)) not in above and times.get(real, 0) < MOST_TIMES:
            times[real] = times.get(real, 0) + 1
            try:
                left.append((path, iter(sorted(os.listdir(path))), (*above, real)))
            except OSError as error:
                say(f"{path} cannot be read: {error.strerror}")


def real_path(folder: str, name: str) -> str:
    """The real path of a folder in a folder whose path is real; links of Windows have kinds that `islink` misses."""
    path = os.path.join(folder, name)
    return os.path.realpath(path) if os.name == "nt" or os.path.islink(path) else path


def named(path: Path, end: str) -> Path:
    """The path with an end in place of its suffix, and with a shorter stem where a disk would refuse its length."""
    stem = path.stem
    while len(os.fsencode(stem + end)) > 255:
        stem = stem[:-1]
    return path.with_name(stem + end)


def places(images: list[Path], folder: Path) -> list[Path]:
    """Where the drawings go: the images' own names below their common folder, all different even if case is ignored."""
    root = os.path.commonpath([Path(os.path.abspath(path)).parent for path in images])
    taken: dict[str, Path] = {}
    files = {os.path.realpath(path) for path in images}
    for path in images:
        first = folder / Path(os.path.abspath(path)).relative_to(root)
        if first.suffix.lower() not in WRITTEN:
            first = named(first.with_name(f"{first.name}.png"), ".png")
        place = first
        number = 1
        while str(place).casefold() in taken:
            number += 1
            place = named(first, f"-{number}{first.suffix}")
        if os.path.realpath(place) in files:
            raise SystemExit(f"{place}: the drawing would replace an image of yours; choose another --draw.")
        taken[str(place).casefold()] = place
    return list(taken.values())


def say(line: str) -> None:
    """Print a line to standard error; what terminals obey or hide in names and paths is shown as an escape."""
    shown = (one if one.isprintable() or one in "\u200c\u200d" else ascii(one)[1:-1] for one in line)
    print("".join(shown), file=sys.stderr)


def main() -> None:
    """The command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Detect the classes of a prompt-tune bundle in images, on the CPU.")
    parser.add_argument("images", nargs="+", type=Path, help="images, and folders of them")
    parser.add_argument("--no-recursive", action="store_true", help="read folders without their subfolders")
    parser.add_argument("--bundle", type=Path, default=here.parent, help="default: the folder above this program's")
    parser.add_argument(
        "--learned",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="another vocabulary, and its label; can be repeated",
    )
    parser.add_argument("--conf", type=float, help="score above which a detection counts; default: each class's own")
    parser.add_argument(
        "--overlap",
        choices=["keep", "learned", "score"],
        default="keep",
        help="which of an original and a learned box on the same object is marked as hidden; default: keep both",
    )
    parser.add_argument("--slice", type=int, metavar="N", help="for small objects: also look at slices of this side")
    parser.add_argument("--slice-overlap", type=float, help="share of a slice that the next one sees too; default: 0.2")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write annotated pictures there")
    parser.add_argument("--font", type=Path, help="font file for --draw; the default has English letters only")
    options = parser.parse_args()
    if options.slice is not None and options.slice < LEAST_SLICE:
        parser.error(f"--slice must be at least {LEAST_SLICE}")
    if options.slice_overlap is not None and not (options.slice and 0 <= options.slice_overlap <= MOST_OVERLAP):
        parser.error(f"--slice-overlap must be from 0 to {MOST_OVERLAP}, and needs --slice")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is skipped gets a line of ours
    quiet_libtiff()
    if options.font and not os.path.isfile(options.font):
        raise SystemExit(f"{options.font}: there is no such file.")
    images = find(options.images, not options.no_recursive, options.draw)
    detector = Detector(options.bundle, [options.bundle / "learned.vocab.safetensors", *options.learned])
    drawings = places(images, options.draw) if options.draw else []
    if drawings:
        names = [name for part in (detector.original, *detector.learned) for name in part.about["names"]]
        warn_of_boxes(names, options.font)
    results, skipped = [], []
    for number, path in enumerate(images):
        try:
            image = read_image(path, whole=options.slice is not None)
        except ValueError as error:
            skipped.append(str(error))
            continue
        wanted = options.conf, options.overlap
        if options.slice is None:
            found = detector.detect(image, *wanted)
        else:
            share = 0.2 if options.slice_overlap is None else options.slice_overlap
            found = detect_sliced(detector, image, options.slice, share, *wanted)
        width, height = original_size(image)
        results.append({"image": str(path), "width": width, "height": height, "detections": found})
        if drawings:
            drawings[number].parent.mkdir(parents=True, exist_ok=True)
            try:
                draw(image, found, options.font).save(drawings[number])
            except Exception as error:
                if getattr(error, "errno", None) is not None:
                    raise  # the disk
                say(f"{drawings[number]} cannot hold {image.width} x {image.height}: {error}")
                drawings[number].unlink(missing_ok=True)
    if not results:
        several = f"None of {len(skipped)} images can be read: " if len(skipped) > 1 else ""
        raise SystemExit(several + skipped[0])
    for reason in skipped:
        say(f"Skipped: {reason}")
    if skipped:
        say(f"{len(results)} image{'s' * (len(results) != 1)}, {len(skipped)} skipped")
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        say(f"{error.filename or 'error'}: {error.strerror or error}")
        sys.exit(1)
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        say(error.code)
        sys.exit(1)
