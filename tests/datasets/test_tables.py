"""Tables of boxes: lines that break a rule, headings, and names with spaces."""

from pathlib import Path

import pytest
from data_sets import TRAIN, save_images
from exports import roboflow_createml

from prompt_tune.datasets.named import Found
from prompt_tune.datasets.samples import Reason
from prompt_tune.datasets.tables import is_table, read_table
from prompt_tune.errors import DataError

HEADING = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def read(tmp_path: Path, text: str, file: str = "_annotations.csv") -> Found:
    save_images(tmp_path, ["a", "b c"])
    (tmp_path / file).write_text(text)
    assert is_table(tmp_path)
    return read_table(tmp_path)["train"]


def test_csv_lines(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        HEADING + "a.png,100,80,lorry,1,2,3,4\nb c.png,100,80,van,5,6,7,8\na.png,100,80,lorry,1,2,3\n"
        "a.png,100,80,lorry,x,2,3,4\na.png,100,80,,1,2,3,4\ngone.png,1,1,lorry,1,2,3,4\ngone.png,1,1,lorry,1,2,3,5\n",
    )
    rows = {image.path.stem: [(row.name, row.box_xyxy) for row in image.rows] for image in found.images}
    assert rows == {"a": [("lorry", (1, 2, 3, 4))], "b c": [("van", (5, 6, 7, 8))]}
    assert found.images[0].size_wh == (100, 80)
    assert [entry.what.split(": ", 1)[1][:30] for entry in found.left_out] == [
        "a line has 8 fields. Received:",
        "there is no image 'gone.png' i",
    ]
    assert ["line 5" in entry.what or "line 6" in entry.what for entry in found.images[0].left_out] == [True, True]
    assert {entry.reason for entry in found.images[0].left_out} == {Reason.ROW}


def test_csv_without_a_column_or_with_a_broken_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column ymax\. It must have filename, width"):
        read(tmp_path, "filename,class,xmin,ymin,xmax\na.png,lorry,1,2,3\n")
    with pytest.raises(DataError, match=r"line \d+: not valid CSV"):
        read(tmp_path, HEADING + "a" * 200_000 + ",1\n")


def test_keras_lines_have_names_with_spaces_and_numbers_of_classes(tmp_path: Path) -> None:
    (tmp_path / "_classes.txt").write_text("lorry\nvan\n")
    found = read(tmp_path, "b c.png 1,2,3,4,1 5,6,7,8,2 1,2,3,4,x\na.png\n", "_annotations.txt")
    rows = {image.path.stem: [(row.name, row.box_xyxy) for row in image.rows] for image in found.images}
    assert rows == {"a": [], "b c": [("van", (1, 2, 3, 4))]}
    assert found.names == ("lorry", "van")
    (image,) = (image for image in found.images if image.path.stem == "b c")
    assert [entry.what.split(": ")[1] for entry in image.left_out] == [
        "class '2' is outside `_classes.txt` (2 names).",
        "class 'x' is outside `_classes.txt` (2 names).",
    ]


def test_createml_entries_that_break_a_rule_are_left_out(tmp_path: Path) -> None:
    text = (
        '[{"image": "a.png", "annotations": [{"label": "lorry", "coordinates": {"x": 1, "y": 2, "width": 3}}, 4]}, 5]'
    )
    found = read(tmp_path, text, "_annotations.createml.json")
    (image,) = (image for image in found.images if image.path.stem == "a")
    assert [entry.reason for entry in (*image.left_out, *found.left_out)] == [Reason.ROW, Reason.ROW, Reason.IMAGE]
    found = read(tmp_path, text.replace('{"x": 1, "y": 2, "width": 3}', "0"), "_annotations.createml.json")
    (image,) = (image for image in found.images if image.path.stem == "a")
    assert "`coordinates` must have x, y, width and height. Received: 0" in image.left_out[0].what
    roboflow_createml(tmp_path / "set", {"train": TRAIN})
    (tmp_path / "set/train/_annotations.createml.json").write_text("{}")
    with pytest.raises(DataError, match=r"must be a list of images\. Received: dict"):
        read_table(tmp_path / "set/train")
