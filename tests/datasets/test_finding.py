"""Files are found in another spelling, but one that could mean two files is not, nor one that is another's own."""

from pathlib import Path

import pytest

from prompt_tune.datasets.finding import Finder, folded, pair, sharing, spellings


def test_spellings_are_the_text_and_what_it_may_mean() -> None:
    assert spellings("a/b.jpg") == ["a/b.jpg"]
    assert spellings(r"a\\b%20c.jpg".replace("\\\\", "\\")) == [
        r"a\b%20c.jpg",
        "a/b%20c.jpg",
        r"a\b c.jpg",
        "a/b c.jpg",
    ]


def test_folded_names_are_equal_if_systems_change_one_into_the_other() -> None:
    assert folded("K\u00fchler%20A.JPG") == folded("ku\u0308hler a.jpg")
    assert folded("\udcff") != folded("\udcfe")


@pytest.mark.parametrize(
    ("files", "wanted", "found"),
    [
        ([], "a.txt", None),
        (["a.txt", "A.txt"], "a.txt", "a.txt"),
        (["a.TXT", "A.txt"], "a.txt", "a.TXT"),
        (["A.txt"], "a.txt", "A.txt"),
        (["A.txt", "a.TxT", "a.TXT"], "a.txt", None),
        (["._a.txt"], "._A.txt", None),
        (["sub/a.txt"], "Sub/A.txt", "sub/a.txt"),
        (["sub/a.txt"], "other/a.txt", None),
        (["a\\b.txt", "a/b.txt"], "a\\b.txt", "a\\b.txt"),
    ],
)
def test_find_takes_the_closest_name_or_none(tmp_path: Path, files: list[str], wanted: str, found: str | None) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert Finder().find(tmp_path / wanted) == (None if found is None else tmp_path / found)


def test_pair_leaves_a_label_to_the_image_of_its_name(tmp_path: Path) -> None:
    for name in ("a.txt", "b.TXT"):
        (tmp_path / name).touch()
    images = [tmp_path / name for name in ("A.jpg", "a.jpg", "a.png", "B.jpg", "c.jpg")]
    labels = pair(images, lambda image: image.with_suffix(".txt"), Finder())
    a, b = tmp_path / "a.txt", tmp_path / "b.TXT"
    assert labels == {images[1]: a, images[2]: a, images[3]: b}
    assert sharing(labels) == {a: images[1:3]}
