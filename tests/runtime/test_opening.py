"""Opening image files: nothing is run, nothing hangs, and whatever is damaged is one error of one line."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import kit
import numpy as np
import pytest
from damage import SIZE_WH, cases, small_pictures
from PIL import Image
from places import ROOT

from prompt_tune.errors import DataError
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES
from prompt_tune.runtime.images import image_size, read_rgb, to_rgb
from prompt_tune.runtime.opening import FORMATS, LIMIT_VARIABLE, MAX_MEGAPIXELS, max_megapixels, opened

KIT = vars(kit.module("kit_images"))
PICTURES = small_pictures()
READERS: tuple[Callable[[Path], object], ...] = (read_rgb, image_size, KIT["read_image"])
SLICES, CASES = 8, 60  # of the fuzzer: a quick part of what `tests/stress` does


@pytest.fixture
def pillow_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pillow's own limit, so low that the small pictures are above twice of it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIZE_WH[0] * SIZE_WH[1] // 4)
    return SIZE_WH[0] * SIZE_WH[1] // 4


def test_formats_are_those_of_the_suffixes_and_the_kit_has_the_same() -> None:
    Image.init()
    known = Image.registered_extensions()
    wanted = {known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known}
    assert wanted | {"MPO", "HEIF"} == FORMATS == set(KIT["FORMATS"])
    assert KIT["MAX_MEGAPIXELS"] == MAX_MEGAPIXELS and KIT["LIMIT_VARIABLE"] == LIMIT_VARIABLE


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_postscript_under_the_name_of_a_picture_is_not_run(tmp_path: Path, name: str) -> None:
    trace, stand_in = tmp_path / "was-run", tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\necho $@ >> '{trace}'\n")
    stand_in.chmod(0o755)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / name)
    both = (
        "import sys; from prompt_tune.runtime.images import image_size, read_rgb; from kit_images import read_image\n"
        "for reader in (read_rgb, image_size, read_image):\n"
        "    try: reader(__import__('pathlib').Path(sys.argv[1]))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )

    def run(code: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        paths = {
            "PATH": f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{kit.FOLDER}",
        }
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | paths).stdout

    lines = run(both).splitlines()
    assert len(lines) == 3 and all("known format" in line for line in lines), lines
    assert not trace.exists()
    run("import sys; from PIL import Image; Image.open(sys.argv[1]).load()")
    assert trace.exists(), "Pillow itself runs the stand-in, so the test would notice"


@pytest.mark.parametrize("name", PICTURES)
def test_small_pictures_of_every_kind_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PICTURES[name])
    image = read_rgb(path)
    assert image.shape[:2][::-1] == image_size(path) and image.dtype == np.uint8
    np.testing.assert_array_equal(KIT["read_image"](path), image)


@pytest.mark.parametrize("name", PICTURES)
def test_limit_of_pillow_does_not_count_and_stays(tmp_path: Path, name: str, pillow_limit: int) -> None:
    """Some decoders ask for it when they open a file, others when they load it."""
    path = tmp_path / name
    path.write_bytes(PICTURES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in READERS:
            reader(path)
            assert pillow_limit == Image.MAX_IMAGE_PIXELS


def test_limit_of_pillow_comes_back_when_the_last_of_several_threads_is_done(tmp_path: Path, pillow_limit: int) -> None:
    (tmp_path / "a.tif").write_bytes(PICTURES["plain.tif"])
    inside, errors = threading.Barrier(5), []

    def read(wait: threading.Event) -> None:
        try:
            with opened(tmp_path / "a.tif") as image:
                inside.wait(10)
                wait.wait(10)
                image.load()
        except Exception as error:
            errors.append(error)

    events = [threading.Event() for _ in range(4)]
    threads = [threading.Thread(target=read, args=(event,)) for event in events]
    for thread in threads:
        thread.start()
    inside.wait(10)
    for thread, event in zip(threads, events, strict=True):
        assert pillow_limit != Image.MAX_IMAGE_PIXELS
        event.set()
        thread.join()
    assert not errors and pillow_limit == Image.MAX_IMAGE_PIXELS


def test_variable_raises_and_lowers_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (1200, 1000)).save(path)
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    for reader in READERS[:2]:
        with pytest.raises(DataError, match=r"1200 x 1000 pixels, 1\.2 megapixels\. At most 1 .*PROMPT_TUNE_MAX_MEGA"):
            reader(path)
    with pytest.raises(ValueError, match="scale it down to at most 1, or set PROMPT_TUNE_MAX_MEGAPIXELS"):
        KIT["read_image"](path)
    monkeypatch.setenv(LIMIT_VARIABLE, " 2 ")
    for reader in READERS:
        reader(path)
    monkeypatch.setenv(LIMIT_VARIABLE, "")
    assert max_megapixels() == KIT["max_megapixels"]() == MAX_MEGAPIXELS


@pytest.mark.parametrize("value", ["0", "-1", "1e3", "a", "9" * 5000, "1.5", "\u0663"])
def test_variable_that_is_no_number_is_named(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES["plain.png"])
    monkeypatch.setenv(LIMIT_VARIABLE, value)
    for reader in READERS:
        with pytest.raises((DataError, ValueError), match="PROMPT_TUNE_MAX_MEGAPIXELS must be a whole number"):
            reader(path)


@pytest.mark.parametrize(("limit", "side"), [(100, 65_535), (100, 12_000), (100, 10_001), (4_000, 65_535)])
def test_gif_whose_frame_is_far_larger_than_its_header_says_is_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, side: int
) -> None:
    """Pillow fills such a frame when it opens the file, before the size can be asked for, and warns of it."""
    content = bytearray(PICTURES["plain.gif"])
    frame = content.index(b"\x2c")
    content[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    (tmp_path / "a.gif").write_bytes(content)
    monkeypatch.setenv(LIMIT_VARIABLE, str(limit))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in READERS:
            with pytest.raises((DataError, ValueError), match="megapixels") as caught:
                reader(tmp_path / "a.gif")
            assert "PROMPT_TUNE_MAX_MEGAPIXELS" in str(caught.value)


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_and_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), Path("/dev/full")):
        for reader in READERS:
            with pytest.raises((DataError, ValueError), match="a pipe, a socket or a device"):
                reader(path)


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "~nobody-of-this-name/a.png", "loop/a.png", "\ud800.png"])
def test_paths_that_cannot_be_are_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for reader in READERS:
        with pytest.raises((DataError, ValueError), match=r"cannot be read|no such image") as caught:
            reader(tmp_path / name)
        assert "\n" not in str(caught.value)


class _OddError(Exception):
    """An error of a class that nobody knows."""


@pytest.mark.parametrize(
    "error",
    [
        *(
            kind("x")
            for kind in (NotImplementedError, SyntaxError, subprocess.SubprocessError, OverflowError, KeyError)
        ),
        *(kind("x") for kind in (RecursionError, AttributeError, ZeroDivisionError, _OddError)),
        MemoryError(),
        RuntimeError("a\nb"),
    ],
)
def test_error_of_any_class_of_a_decoder_is_one_line(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "a.bmp"
    path.write_bytes(PICTURES["plain.bmp"])
    image = Image.open(io.BytesIO(PICTURES["plain.bmp"]))
    monkeypatch.setattr(type(image), "load", fail)
    for reader in READERS:
        with pytest.raises((DataError, ValueError), match="cannot be read as an image: ") as caught:
            reader(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="A PIL image cannot be read as an image"):
        to_rgb(image)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(SLICES))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_pictures_give_pixels_or_one_line(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "4")
    KIT["quiet_libtiff"]()
    read, refused = 0, 0
    for name, content in cases(seed, CASES):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            image = read_rgb(path)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.size, name
            assert image_size(path) == image.shape[:2][::-1], name
            read += 1
        except DataError as error:
            assert "\n" not in str(error) and name in str(error)
            refused += 1
            with pytest.raises(ValueError, match="cannot be read as an image: ") as caught:
                KIT["read_image"](path)
            assert "\n" not in str(caught.value)
        else:
            np.testing.assert_array_equal(KIT["read_image"](path), image)
        try:
            image_size(path)
        except DataError as error:
            assert "\n" not in str(error)
    assert read >= CASES // 20 and refused >= CASES // 2
    assert capfd.readouterr().err == "", "the libraries below Pillow write nothing"
