"""Images that labels name by a path of another machine, and classes that get their numbers."""

from pathlib import Path

from data_sets import save_images

from prompt_tune.datasets.named import Album, Found, NamedImage, NamedRow, Pictures, numbered
from prompt_tune.datasets.samples import LeftOut, Reason


def test_find_takes_the_image_whose_folders_match_best(tmp_path: Path) -> None:
    save_images(tmp_path / "cam1/day", ["a"])
    save_images(tmp_path / "cam2/day", ["a"])
    save_images(tmp_path, ["b"])
    pictures = Pictures(tmp_path)
    assert pictures.find("C:\\work\\cam2\\day\\a.png") == tmp_path / "cam2/day/a.png"
    assert pictures.find("day/a.png") is None  # either
    assert pictures.find("/elsewhere/B.PNG") == tmp_path / "b.png"
    assert pictures.find("b") == tmp_path / "b.png"
    assert pictures.find("../../../etc/passwd", "..", "") is None


def test_an_image_elsewhere_is_never_found(tmp_path: Path) -> None:
    save_images(tmp_path, ["secret"])
    (tmp_path / "set").mkdir()
    found = Pictures(tmp_path / "set").require("`x`", str(tmp_path / "secret.png"))
    assert isinstance(found, LeftOut) and found.reason is Reason.IMAGE
    assert "there is no image" in found.what


def test_album_says_each_missing_image_once(tmp_path: Path) -> None:
    save_images(tmp_path, ["a", "b"])
    (tmp_path / "c.png").symlink_to("nowhere")
    album = Album(tmp_path)
    assert album.image("1", "gone.png") is None and album.image("2", "gone.png") is None
    assert album.image("3", "c.png") is None
    first, again = album.image("4", "a.png"), album.image("5", "a.png")
    assert first is not None and first is again
    assert [entry.reason for entry in album.left_out] == [Reason.IMAGE, Reason.LINK]
    assert len(album.found().images) == 1
    labelled = album.found(unlabelled="a file")
    assert [entry.what for entry in labelled.left_out[2:]] == [f"`{tmp_path / 'b.png'}` has no entry in a file."]
    whole = album.found(background=True)
    assert [image.path.stem for image in whole.images] == ["a", "b"]
    assert len(whole.left_out) == 2


def test_numbered_has_listed_classes_first_and_the_others_by_name() -> None:
    image = NamedImage(Path("a.png"), [NamedRow("1", name, (0, 0, 1, 1)) for name in ("pear", "fig", "apple")])
    labels = numbered("table", {"train": Found([image], names=("pear", "nut")), "val": Found()})
    assert labels.names == ("pear", "nut", "apple", "fig")
    assert [row.class_id for row in labels.splits["train"][0].rows] == [0, 3, 2]
    assert labels.has("val") and not labels.has("test")
