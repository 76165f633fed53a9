"""Fonts for the text in pictures: Pillow's own font, and installed fonts for the characters that it lacks."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
FONT_PIXELS = (11, 64)  # the smallest size at which Pillow's own font is legible, and the largest that is of use
FONT_SUFFIXES = (".otf", ".ttc", ".ttf")
STRIKES = (109, 160)  # pixels: the only size of Noto Color Emoji, and the largest of Apple Color Emoji
UNUSUAL = ("black", "bold", "condensed", "italic", "light", "mono", "oblique", "serif", "thin")  # styles, tried last
NAMED = 20  # characters that a warning names
_JOINER = "\u200d"  # makes one emoji of two
_ABSENT = "\uffff"  # not a character: every font draws it as a missing one
_PROBE_PIXELS = 32
_PROBE_COUNT = 64  # characters to compare fonts by: with all of them, hundreds of fonts would take seconds
_FONTCONFIG_SECONDS = 20  # the first call may index all fonts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Face:
    """A font file.

    Attributes:
        path: The file; empty for Pillow's own font.
        index: Number of the font in a collection (.ttc).
        strike: Size in pixels of a bitmap font that has only this size; 0 for a font of any size.
    """

    path: str = ""
    index: int = 0
    strike: int = 0


OWN = Face()


@dataclass(frozen=True)
class Line:
    """One line of text.

    Attributes:
        parts: The text from left to right, each part with its font.
        pixels: Size of the text.
    """

    parts: tuple[tuple[str, Face], ...]
    pixels: int

    @property
    def width(self) -> float:
        """Width in pixels."""
        return sum(self._width(text, face) for text, face in self.parts)

    def draw(self, picture: Image.Image, start: tuple[float, float], fill: Colour) -> None:
        """Draw the line into a picture.

        Args:
            picture: RGB; it is changed.
            start: Left end and vertical middle of the line, in pixels of the picture.
            fill: Colour of the text; emoji have their own.
        """
        canvas = ImageDraw.Draw(picture)
        x, middle = start
        ascent, descent = _opened(OWN, self.pixels).getmetrics()
        baseline = middle + (ascent - descent) / 2
        for text, face in self.parts:
            font = _opened(face, self.pixels)
            if face == OWN:
                canvas.text((x, middle), text, font=font, fill=fill, anchor="lm")
            elif face.strike:
                stamp = Image.new("RGBA", (max(1, round(font.getlength(text))), sum(font.getmetrics())))
                ImageDraw.Draw(stamp).text((0, 0), text, font=font, embedded_color=True)
                scale = self.pixels / face.strike
                stamp = stamp.resize((max(1, round(stamp.width * scale)), max(1, round(stamp.height * scale))))
                picture.paste(stamp, (round(x), round(middle - stamp.height / 2)), stamp)
            else:
                canvas.text((x, baseline), text, font=font, fill=fill, anchor="ls")
            x += self._width(text, face)

    def _width(self, text: str, face: Face) -> float:
        length = _opened(face, self.pixels).getlength(text)
        return length * self.pixels / face.strike if face.strike else length


class Fonts:
    """Chooses fonts by the characters that they can draw. Safe to use in several threads."""

    def __init__(self) -> None:
        self._drawable: dict[Face, set[str]] = {OWN: set()}  # of the characters seen so far
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, texts: Iterable[str]) -> None:
        """Find fonts for all characters of the texts, and log one warning that names those no font can draw."""
        with self._lock:
            new = {character for text in texts if not text.isascii() for character in _visible(text)} - self._seen
            if not new:
                return
            self._seen |= new
            for face, drawable in self._drawable.items():
                drawable |= _coverage(face, new)
            missing = new.difference(*self._drawable.values())
            while missing and (faces := _search(missing)):
                for face in faces:
                    self._drawable[face] = _coverage(face, self._seen)
                missing = missing.difference(*self._drawable.values())
        if missing:
            named = " ".join(sorted(missing)[:NAMED])
            rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            logger.warning(
                "No installed font can draw %s%s: pictures show their codes instead. Install a font that has them, "
                "such as Noto (on Debian and Ubuntu: apt install fonts-noto).",
                named,
                rest,
            )

    def legible(self, text: str) -> str:
        """The text in composed form, with a code such as \\u53c9 for each character that no installed font draws."""
        self.prepare([text])
        with self._lock:
            drawable = set().union(*self._drawable.values())
        text = unicodedata.normalize("NFC", text)
        missing = _visible(text) - drawable
        return "".join(_code(part) if part in missing and not part.isascii() else part for part in text)

    def files(self) -> list[str]:
        """The files of the installed fonts that were needed until now, without those of one size."""
        with self._lock:
            return [face.path for face in self._drawable if face != OWN and not face.strike]

    def line(self, text: str, pixels: float) -> Line:
        """The text with a font for each part of it: one font for all of it where there is one.

        A character that no font draws is written as its code, such as \\u53c9, so that names can be told apart.

        Args:
            text: One line.
            pixels: Size of the text; kept within `FONT_PIXELS`.
        """
        smallest, largest = FONT_PIXELS
        size = min(max(round(pixels), smallest), largest)
        if text.isascii():
            return Line(((text, OWN),), size)
        text = self.legible(text)
        with self._lock:
            drawable = dict(self._drawable)
        visible = _visible(text)
        whole = next((face for face, known in drawable.items() if not face.strike and visible <= known), None)
        parts: list[tuple[str, Face]] = []
        for cluster in [text] if whole else _clusters(text):
            visible = _visible(cluster)
            face = whole or next((face for face, known in drawable.items() if visible <= known), OWN)
            if parts and parts[-1][1] == face:
                cluster = parts.pop()[0] + cluster
            parts.append((cluster, face))
        return Line(tuple((_laid_out(part, _opened(face, size)), face) for part, face in parts), size)


FONTS = Fonts()  # shared, so that a process searches and warns only once for each character


def font_folders() -> list[Path]:
    """The folders where this system keeps fonts, the user's own first."""
    if sys.platform == "win32":
        places = [("LOCALAPPDATA", "Microsoft/Windows/Fonts"), ("WINDIR", "Fonts")]
        return [Path(os.environ[name]) / folder for name, folder in places if name in os.environ]
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    return [data / "fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


def _search(characters: Collection[str]) -> list[Face]:
    """The fewest installed fonts that draw these characters; none where no font draws any of them."""
    step = -(-len(characters) // _PROBE_COUNT)
    wanted = set(sorted(characters)[::step])
    drawable: dict[Face, set[str]] = {}
    for path, index in _installed(wanted):
        face = _usable(path, index)
        if face is None:
            continue
        if found := _coverage(face, wanted):
            drawable[face] = found
        if found == wanted:
            break
    chosen: list[Face] = []
    while wanted and drawable:
        best = max(drawable, key=lambda face: len(drawable[face] & wanted))  # among equals, the first
        found = drawable.pop(best) & wanted
        if not found:
            break
        chosen.append(best)
        wanted -= found
    return chosen


def _installed(characters: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Installed fonts as (file, number in the file): fontconfig's choice first, then all, plain styles first."""
    seen = set()
    if program := shutil.which("fc-match"):
        charset = " ".join(f"{ord(character):x}" for character in characters)
        command = [program, "--sort", "--format", "%{file}\t%{index}\n", f"sans:charset={charset}"]
        try:
            done = subprocess.run(command, capture_output=True, check=True, timeout=_FONTCONFIG_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            logger.debug("fc-match failed: %s", error)
        else:
            for line in done.stdout.splitlines():
                path, _, index = os.fsdecode(line).rpartition("\t")
                seen.add(path)
                yield path, int(index) & 0xFFFF  # the upper half names a variable font's instance
    for folder in font_folders():
        files = [path for path in folder.rglob("*") if path.suffix.lower() in FONT_SUFFIXES and path.is_file()]
        for file in sorted(files, key=lambda file: (sum(word in file.stem.lower() for word in UNUSUAL), file)):
            if str(file) not in seen:
                yield str(file), 0


def _usable(path: str, index: int) -> Face | None:
    """The font in a file, or None where FreeType cannot use it."""
    for strike in (0, *STRIKES):
        face = Face(path, index, strike)
        try:
            _open(face, _PROBE_PIXELS)
        except (OSError, ValueError):
            continue
        return face
    return None


def _coverage(face: Face, characters: Iterable[str]) -> set[str]:
    """Those of the characters that the font can draw: their glyphs differ from the one of a missing character."""
    font = _open(face, _PROBE_PIXELS).font_variant(layout_engine=ImageFont.Layout.BASIC)

    def glyph(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    absent = glyph(_ABSENT)
    return {character for character in characters if glyph(character) != absent}


@lru_cache(maxsize=64)
def _opened(face: Face, pixels: int) -> ImageFont.FreeTypeFont:
    return _open(face, pixels)


def _open(face: Face, pixels: int) -> ImageFont.FreeTypeFont:
    """A font at a size. Raises: OSError, ValueError: FreeType cannot use the file, or not at this size."""
    if face != OWN:
        return ImageFont.truetype(face.path, face.strike or pixels, face.index)
    font = ImageFont.load_default(size=pixels)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow built without FreeType has one tiny bitmap font
        raise RuntimeError(
            "Pillow must be built with FreeType to write labels. Cure: pip install --force-reinstall pillow"
        )
    return font


def _visible(text: str) -> set[str]:
    """The characters of a text that need a glyph."""
    return {character for character in unicodedata.normalize("NFC", text) if not _is_invisible(character)}


def _is_invisible(character: str) -> bool:
    """White space, joiners, marks of direction, and variation selectors."""
    return character.isspace() or unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


def _code(character: str) -> str:
    """The code of a character, as Python and JSON write it."""
    return character.encode("ascii", "backslashreplace").decode()


def _clusters(text: str) -> Iterator[str]:
    """The text in pieces that need one font each: a character with its accents and what joins it to the next."""
    cluster = ""
    for character in text:
        joins = _is_invisible(character) or unicodedata.category(character).startswith("M") or cluster.endswith(_JOINER)
        if cluster and not joins:
            yield cluster
            cluster = ""
        cluster += character
    yield cluster


def _laid_out(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text without invisible characters where the layout would draw an empty box for each."""
    if font.layout_engine == ImageFont.Layout.RAQM:
        return text
    return "".join(" " if part.isspace() else part for part in text if part.isspace() or not _is_invisible(part))
