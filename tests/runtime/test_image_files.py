"""Image files: which are found, and what is said of the others."""

import os
from pathlib import Path

import kit
import pytest
from PIL import Image

from prompt_tune.errors import DataError
from prompt_tune.runtime import image_files, opening
from prompt_tune.runtime.image_files import IMAGE_SUFFIXES, WRITTEN_SUFFIXES, find_images, unread_line, unread_picture
from prompt_tune.runtime.images import read_rgb

KIT = vars(kit.module("kit_images"))


def test_find_images_file_folder_and_glob_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "a.JPG", "notes.txt", "deeper/c.webp", "odd[1].png"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.JPG", "b.png", "c.webp", "odd[1].png"]
    assert [path.name for path in find_images(tmp_path, recursive=False)] == ["a.JPG", "b.png", "odd[1].png"]
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


def test_find_images_of_several_places_gives_each_image_once_in_order(tmp_path: Path) -> None:
    for name in ("x/b.png", "x/a.png", "y/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 6)).save(tmp_path / name)
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


def test_find_images_leaves_out_what_computers_add(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".hidden.png", "B.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    assert [path.name for path in find_images(tmp_path)] == ["B.PNG", "a.png"]


def test_find_images_in_a_folder_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of root may read everything, so the system's refusal is put in its place."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied\. Allow reading it, or leave it out\.$"):
        find_images(tmp_path)


def test_kit_has_the_same_lists() -> None:
    assert set(IMAGE_SUFFIXES) == KIT["READ"] and KIT["WRITTEN"] == WRITTEN_SUFFIXES
    assert set(image_files._UNREAD) == KIT["UNREAD"] and not set(image_files._UNREAD) & set(IMAGE_SUFFIXES)
    assert KIT["MAX_MEGAPIXELS"] == opening.MAX_MEGAPIXELS


@pytest.mark.skipif(".heic" in IMAGE_SUFFIXES, reason="pillow-heif is installed")
def test_pictures_that_are_not_looked_at_are_named_with_the_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["1.HEIC", "2.heic", "3.heif", "4.heic", "b.NEF", "sub/c.svg", "notes.txt", "a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([tmp_path, tmp_path]) == [tmp_path / "a.png"]
    (line,) = caplog.messages
    assert line == (
        f"6 pictures are not looked at: 4 HEIC (`{tmp_path}/1.HEIC`, `{tmp_path}/2.heic`, `{tmp_path}/3.heif`, ...): "
        f"`pip install pillow-heif` makes them readable; 1 camera raw (`{tmp_path}/b.NEF`): develop them to JPEG or "
        f"TIFF; 1 vector graphics (`{tmp_path}/sub/c.svg`): export them as PNG."
    )
    assert unread_line([Path("a.jxl")]) == (
        "1 picture is not looked at: 1 other formats (`a.jxl`): save them as PNG or JPEG."
    )
    assert unread_picture(Path("a.HEIC")) == "HEIC: `pip install pillow-heif` makes them readable"
    assert unread_picture(Path("a.png")) is unread_picture(Path("a.txt")) is unread_picture(Path("heic")) is None
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"has no image .*6 pictures are not looked at: 4 HEIC .*pip install"):
        find_images(tmp_path)
    with pytest.raises(DataError, match=r"1\.HEIC` cannot be read as an image: HEIC: `pip install pillow-heif`"):
        read_rgb(tmp_path / "1.HEIC")


def test_broken_links_are_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert find_images(tmp_path) == find_images(f"{tmp_path}/*") == [tmp_path / "a.png"]
    assert caplog.messages == [f"1 link leads nowhere and is left out: `{tmp_path}/gone.png`"] * 2
    with pytest.raises(DataError, match=r"gone\.png`: a link that leads nowhere\."):
        find_images(tmp_path / "gone.png")


def test_glob_leaves_out_hidden_and_metadata_folders_unless_it_names_them(tmp_path: Path) -> None:
    for name in ("a.png", "__MACOSX/b.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images(f"{tmp_path}/**/*.png")] == ["a.png"]
    assert [path.name for path in find_images(f"{tmp_path}/.hidden/*.png")] == ["c.png"]


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".png", "a\\b.png", "\udcff.png"])
def test_names_that_no_disk_takes_are_one_line(name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(name)
    with pytest.raises(DataError, match=r"cannot be read|no such image"):
        read_rgb(name)


@pytest.mark.timeout(30)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_named_and_never_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").touch()
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "other")
    assert find_images(tmp_path) == find_images(f"{tmp_path}/**/*") == [tmp_path / "a.png"]
    line = f"1 is a pipe, a socket or a device and is left out: `{tmp_path}/b.png`"
    assert caplog.messages == [line] * 2
    with pytest.raises(DataError, match=r"Something is left out, which --strict forbids: .*b\.png"):
        find_images(tmp_path, strict=True)
    for path in (tmp_path / "b.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="`: a pipe, a socket or a device\\. Give an image"):
            find_images(path)


@pytest.mark.parametrize("source", ["~nobody-of-this-name/a.png", "a\0.png", "~a\0b/c.png"])
def test_paths_that_cannot_be_are_one_line(source: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_images(source)
    with pytest.raises(DataError, match="has no image"):
        find_images(f"{source}/*.png")
