"""Fonts: which one draws which character, where they are looked for, and what is said where there is none."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from prompt_tune.media.draw import draw
from prompt_tune.media.fonts import FONT_PIXELS, OWN, Face, Fonts, Line, font_folders
from prompt_tune.runtime.detections import Detections

NOWHERE = "\U00050000"  # a character that Unicode has not assigned: no font has it
CYRILLIC = ("\u0433\u0440\u0443\u0437\u043e\u0432\u0438\u043a", "\u0430\u0432\u0442\u043e\u0431\u0443\u0441")


@pytest.fixture
def one_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with DejaVu Sans, which matplotlib ships; on Linux, fonts are looked for there first."""
    matplotlib = pytest.importorskip("matplotlib")
    folder = tmp_path / "fonts" / "deep"
    folder.mkdir(parents=True)
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", folder)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no fontconfig
    return folder / "DejaVuSans.ttf"


def pixels(line: Line) -> np.ndarray:
    """(48, 600, 3) uint8: the line in black on white."""
    picture = Image.new("RGB", (600, 48), "white")
    line.draw(picture, (4, 24), (0, 0, 0))
    return np.asarray(picture)


@pytest.mark.parametrize("text", ["", "crate 0.93", "a [b] {c}~"])
def test_ascii_is_drawn_with_pillows_own_font_as_before(text: str) -> None:
    line = Fonts().line(text, 30)
    assert line.parts == ((text, OWN),)
    picture = Image.new("RGB", (600, 48), "white")
    font = ImageFont.load_default(30)
    ImageDraw.Draw(picture).text((4, 24), text, font=font, fill=(0, 0, 0), anchor="lm")
    np.testing.assert_array_equal(pixels(line), np.asarray(picture))
    assert line.width == font.getlength(text)


def test_size_stays_within_its_limits() -> None:
    assert [Fonts().line("a", size).pixels for size in (1, 30.4, 1000)] == [FONT_PIXELS[0], 30, FONT_PIXELS[1]]


def test_names_that_pillows_font_lacks_are_drawn_with_a_font_in_the_users_folder(one_font: Path) -> None:
    fonts = Fonts()
    lines = [fonts.line(f"{name} 0.50", 30) for name in CYRILLIC]
    for line, name in zip(lines, CYRILLIC, strict=True):
        assert line.parts == ((f"{name} 0.50", Face(str(one_font))),), "one font for all of the label"
    picture = Image.new("RGB", (600, 48), "white")
    font = ImageFont.truetype(str(one_font), 30)
    ImageDraw.Draw(picture).text((4, 24), f"{CYRILLIC[0]} 0.50", font=font, fill=(0, 0, 0), anchor="lm")
    drawn, wanted = ((np.min(image, axis=2) < 128) for image in (pixels(lines[0]), np.asarray(picture)))
    assert drawn.sum() == pytest.approx(wanted.sum(), rel=0.1), "the letters of that font"
    assert (pixels(lines[0]) != pixels(lines[1])).any()


def test_picture_of_a_cyrillic_class_has_its_letters(one_font: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prompt_tune.media.draw.FONTS", Fonts())
    grey = np.full((100, 400, 3), 128, np.uint8)

    def picture(name: str) -> np.ndarray:
        boxes, scores = np.array([[50, 50, 350, 90]], np.float32), np.array([0.5], np.float32)
        found = Detections(boxes, scores, np.array([0]), (name,), ("learned",), (400, 100))
        return np.asarray(draw(grey, found))

    ink = [(picture(name) == (24, 26, 30)).all(axis=2) for name in ("\u043d\u043e\u0441", "\u0441\u043e\u043d")]
    assert all(letters.any() for letters in ink)
    assert (ink[0] != ink[1]).any(), "the same box for every letter would make them equal"


def test_accents_stay_with_their_letters_and_other_characters_get_other_fonts(one_font: Path) -> None:
    face = Face(str(one_font))
    line = Fonts().line(f"Ka\u0308fer {NOWHERE}", 30)
    assert line.parts == (("K", OWN), ("\u00e4", face), ("fer \\U00050000", OWN))
    assert Fonts().line("q\u0308a", 30).parts == (("q\u0308a", face),)  # no composed letter exists
    assert Fonts().line("r\u200de\ufe0fd\u00a0a", 30).parts == (("red a", OWN),), "no boxes for invisible characters"


def test_characters_without_a_font_are_named_once_in_one_line(
    one_font: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("prompt_tune"), "propagate", True)
    fonts = Fonts()
    many = [chr(0x50001 + number) for number in range(30)]
    fonts.prepare([NOWHERE, "crate", CYRILLIC[0], *many])
    for _ in range(2):
        assert fonts.line(NOWHERE + CYRILLIC[0], 30).parts[0] == ("\\U00050000", OWN)
    (record,) = {id(record): record for record in caplog.records}.values()  # some versions of pytest hand it on twice
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"No installed font can draw {' '.join([NOWHERE, *many[:19]])} and 11 more: pictures show their codes instead. "
        "Install a font that has them, such as Noto (on Debian and Ubuntu: apt install fonts-noto)."
    )


def test_names_that_no_font_draws_differ_in_pictures(one_font: Path) -> None:
    fonts = Fonts()
    names = [chr(0x50001 + number) * 2 for number in range(2)]
    assert [fonts.legible(name) for name in names] == ["\\U00050001" * 2, "\\U00050002" * 2]
    assert (pixels(fonts.line(names[0], 30)) != pixels(fonts.line(names[1], 30))).any()
    assert fonts.legible("crate \\ \u00e4\u200d") == "crate \\ \u00e4\u200d"
    assert fonts.files() == [str(one_font)]


def test_file_that_is_not_a_font_is_passed_over(one_font: Path) -> None:
    (one_font.parent / "A.ttf").write_bytes(b"no font")
    assert Fonts().line(CYRILLIC[0], 30).parts[0][1] == Face(str(one_font))


def test_fontconfig_is_asked_where_it_is_installed(
    one_font: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere" / "Other.ttf"
    elsewhere.parent.mkdir()
    one_font.rename(elsewhere)
    program = tmp_path / "fc-match"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nprintf "{elsewhere}\\t0\\n"\n')
    program.chmod(0o755)
    assert Fonts().line("\u0436", 30).parts == (("\u0436", Face(str(elsewhere))),)
    assert (tmp_path / "asked").read_text().strip().endswith("sans:charset=436")


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [
        ("linux", ["X/fonts", "H/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"]),
        ("darwin", ["H/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"]),
        ("win32", ["L/Microsoft/Windows/Fonts", "W/Fonts"]),
    ],
)
def test_folders_are_those_of_the_system(platform: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", platform)
    for name, value in (("HOME", "H"), ("XDG_DATA_HOME", "X"), ("LOCALAPPDATA", "L"), ("WINDIR", "W")):
        monkeypatch.setenv(name, value)
    assert [folder.as_posix() for folder in font_folders()] == wanted


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_and_rubbish_among_the_fonts_are_passed_over(one_font: Path) -> None:
    os.mkfifo(one_font.with_name("a.ttf"))
    one_font.with_name("b.ttf").write_bytes(b"no font" * 100)
    one_font.with_name("c.ttf").write_bytes(one_font.read_bytes()[:1000])
    one_font.with_name("d.ttf").mkdir()
    (one_font.parent / "loop").symlink_to(one_font.parent.parent)
    line = Fonts().line(CYRILLIC[0], 30)
    assert line.parts == ((CYRILLIC[0], Face(str(one_font))),)
