"""The line that is said of a data set before the work begins."""

import logging
from pathlib import Path

import pytest
from data_sets import TRAIN, VAL, write_yolo

from prompt_tune.datasets.opening import listed, named, tell_left_out
from prompt_tune.datasets.reading import read_dataset, read_split
from prompt_tune.datasets.samples import LeftOut, Reason
from prompt_tune.errors import DataError


def test_one_line_counts_what_there_is_and_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "images/train/b.png").write_bytes(b"nothing")
    label = tmp_path / "labels/train/a.txt"
    rows = label.read_text("utf-8")
    label.write_text(rows + rows.splitlines()[0] + "\n0 7 7 0.1 0.1\n", "utf-8")
    with caplog.at_level(logging.INFO):
        read_dataset(source)
    assert caplog.messages[0] == (
        f"`{source}`: train 2 images, 2 boxes, 1 background image; val 1 image, 1 box, 0 background images; 2 classes. "
        "Left out: 1 unreadable image, 1 bad label row, 1 box that stands twice."
    )
    assert caplog.messages[1].startswith("Left out: `") and len(caplog.messages) == 2
    caplog.clear()
    with caplog.at_level(logging.INFO):
        read_split(source, "val")
    told = f"`{source}`: val 1 image, 1 box, 0 background images; 2 classes. Left out: nothing."
    assert caplog.messages == [told]


def test_several_of_a_reason_are_in_the_plural(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tell_left_out("`x`", [LeftOut(reason, f"{reason}.") for reason in Reason for _ in range(2)])
    assert caplog.messages[0] == (
        "`x`. Left out: 2 unreadable images, 2 pictures in a format that is not read, 2 links that lead nowhere, 2 "
        "label files without an image, 2 images that nobody has labelled, 2 bad label rows, 2 boxes without an area, 2 "
        "boxes that stand twice."
    )


def test_the_first_five_are_named_and_all_are_listed() -> None:
    entries = [LeftOut(Reason.ROW, f"`a.txt`, line {k}: bad. Correct it.") for k in range(7)]
    assert named(entries).endswith("line 4: bad. Correct it; and 2 more.")
    lines = listed({"train": entries[:2], "val": []}).splitlines()
    assert lines == [f"train: bad label row: `a.txt`, line {k}: bad. Correct it." for k in range(2)]
    hostile = LeftOut(Reason.IMAGE, "`a\n\x1b[2J.png`: bad.")  # the name of a file may have line breaks
    assert listed({"train": [hostile]}) == "train: unreadable image: `a\\n\\x1b[2J.png`: bad.\n"


def test_strict_refuses_what_is_left_out() -> None:
    tell_left_out("`x`", [], strict=True)
    with pytest.raises(DataError, match=r"left out \(1 bad label row\), which --strict forbids: `a`: bad\."):
        tell_left_out("`x`", [LeftOut(Reason.ROW, "`a`: bad.")], strict=True)
