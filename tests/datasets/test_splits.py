"""The names of splits, as tools spell them."""

from pathlib import Path

import pytest

from prompt_tune.datasets.splits import by_split, split_folders, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train", "train"),
        ("train2017", "train"),
        ("default", "train"),
        ("Validation", "val"),
        ("valid", "val"),
        ("val_2014", "val"),
        ("testing", "test"),
        ("trainval", None),
        ("cat_train", None),
        ("2017", None),
    ],
)
def test_split_of(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_of_two_names_for_a_split_the_usual_one_is_taken() -> None:
    places = [Path("valid.txt"), Path("val.txt"), Path("default.txt"), Path("other.txt"), Path("train.txt")]
    assert by_split(places) == {"train": Path("train.txt"), "val": Path("val.txt")}


def test_split_folders_are_visible_folders(tmp_path: Path) -> None:
    for name in ("train", "valid", ".test", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "test").write_text("no folder")
    assert split_folders(tmp_path) == {"train": tmp_path / "train", "val": tmp_path / "valid"}
