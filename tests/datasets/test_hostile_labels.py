"""Labels that mean harm: one line each, within a moment, and never a traceback."""

import json
import logging
import os
import time
from pathlib import Path

import hostile_labels
import pytest
import yaml
from data_sets import NAMES, TRAIN, VAL, coco_content, write_coco, write_grounding, write_voc, write_yolo

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.replay import read_replay
from prompt_tune.datasets.yolo import MAX_LINE
from prompt_tune.errors import DataError, PromptTuneError


def test_changed_data_sets_give_data_or_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    logging.disable(logging.CRITICAL)
    try:
        found = hostile_labels.check(tmp_path, seed=1, count=150)
    finally:
        logging.disable(logging.NOTSET)
    assert set(found) == {"read", "DataError"} and min(found.values()) > 30


def refusal(source: Path) -> str:
    """The text of the error, which is one short line and comes within a second."""
    start = time.monotonic()
    with pytest.raises(PromptTuneError) as error:
        read_dataset(source)
    assert time.monotonic() - start < 1
    text = str(error.value)
    assert len(text.splitlines()) == 1 and len(text) < 1000
    return text


@pytest.mark.parametrize(
    "line", ["train: 2020-13-45", "nc: 0b_", f"nc: {'1' * 5000}", f"nc: 0x{'f' * 5000}", "x: [" * 999]
)
def test_yaml_value_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    source.write_text(f"{line}\n{source.read_text()}")
    assert f"`{source}`, line 1" in refusal(source)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("names: [2020-01-01, b]", "a class name must be text. Received: datetime.date(2020, 1, 1). Put it in quotes."),
        ("names: {2020-01-01: a}", "the keys of `names` must be 0, 1, 2"),
        ("nc: 2020-01-01T00:00:00+02:00", "`nc` is datetime.datetime("),
        ("train: 2020-01-01", "`train` must be a folder, a text file, or a list of them"),
        ("train: ~nouser/x", "'~nouser/x' begins with a user that does not exist"),
        ("path: ~nouser/x", "'~nouser/x' begins with a user that does not exist"),
        ('train: "a\\0b"', "cannot be a path"),
        (f"train: {'x' * 300}", "cannot be a path"),
        (f"path: {'x/' * 3000}", "cannot be a path"),
        ('names: ["a\\x1b[2Jb", c]', "must not have control characters"),
        ('names: ["exe.\\u202egnp", c]', "control the direction of text"),
    ],
)
def test_yaml_value_of_another_kind_is_one_line(tmp_path: Path, keys: str, text: str) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    content = yaml.safe_load(source.read_text())
    content.pop(keys.partition(":")[0], None)
    source.write_text(f"{keys}\n{yaml.safe_dump(content)}")
    assert text in refusal(source)


def test_data_set_of_a_user_that_does_not_exist_is_one_line() -> None:
    assert "'~nouser/x' begins with a user that does not exist" in refusal(Path("~nouser/x"))


@pytest.mark.parametrize(
    ("key", "literal", "text"),
    [
        ("bbox", "[1, 2, 1" + "0" * 400 + ", 4]", "`bbox` must be [x, y, width, height]"),
        ("bbox", "[1, 2, NaN, 4]", "has numbers that are not finite"),
        ("bbox", "[1, 2, Infinity, 4]", "has numbers that are not finite"),
        ("bbox", "[1, 2, 1e308, 4]", "is not inside its image"),
        ("category_id", "true", "`category_id` must be the id of a category. Received: True"),
        ("category_id", "7.0", "`category_id` must be the id of a category. Received: 7.0"),
        ("image_id", "false", "there is no image False"),
        ("image_id", "1" + "0" * 400, "there is no image 1000000"),
    ],
)
def test_coco_value_that_means_nothing_is_a_bad_row(tmp_path: Path, key: str, literal: str, text: str) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    content["annotations"][0][key] = "@"
    (tmp_path / "train.json").write_text(json.dumps(content).replace('"@"', literal))
    (left,) = read_dataset(source).train.left_out
    assert text in left.what and len(left.what) < 500


@pytest.mark.parametrize("literal", ["true", "7.0", "1" + "0" * 400, '"x"', "-1", "NaN", "[]"])
def test_coco_size_that_means_nothing_is_not_compared_or_refused(tmp_path: Path, literal: str) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    content = coco_content(TRAIN)
    content["images"][0]["width"] = "@"
    (tmp_path / "train.json").write_text(json.dumps(content).replace('"@"', literal))
    if literal.startswith("10"):
        assert "its label was made for 1000000" in refusal(source)
    else:
        assert len(read_dataset(source).train.samples) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "it is nested more than 64 deep. Export it again."),
        ('{"images": ' + "9" * 5000 + "}", "a whole number has more than 4,300 digits. Export it again."),
    ],
)
def test_coco_file_beyond_a_limit_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    source = write_coco(tmp_path, {"train": TRAIN, "val": VAL})
    (tmp_path / "train.json").write_text(text)
    assert problem in refusal(source)


def test_grounding_set_with_numbers_that_mean_nothing_is_one_line(tmp_path: Path) -> None:
    file = write_grounding(tmp_path, [("a.png", "a dog", [(["dog"], 1, 2, 30, 40)])])
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = "@"
    file.write_text(json.dumps(content).replace('"@"', "[0, 0, 1" + "0" * 400 + ", 5]"))
    assert "`bbox` must be" in read_replay(file, [("dog",)]).left_out[0].what
    for literal in ('"100"', "true", "1" + "0" * 400, "NaN"):
        content["images"][0]["width"] = "@"
        file.write_text(json.dumps(content).replace('"@"', literal))
        with pytest.raises(DataError, match="`width` and `height` must be pixels above 0"):
            read_replay(file, [("dog",)])


def test_label_line_beyond_the_limit_is_a_bad_row(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    label = tmp_path / "labels" / "train" / "a.txt"
    label.write_text(f"0 {'0' * MAX_LINE}.5 0.5 0.2 0.2\n{'x' * 5000} 1 1 1 1\n{label.read_text()}")
    first, second = read_dataset(source).train.left_out
    assert first.what == (
        f"`{label}`, line 1: a line has at most 1,048,576 characters. Received: 1,048,592. Correct or remove it."
    )
    assert len(second.what) < 500


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("what", ["labels/train/a.txt", "images/train/a.png", "train.txt", "data.yaml"])
def test_file_that_is_none_never_hangs(tmp_path: Path, what: str, make: object) -> None:
    (tmp_path / "train.txt").touch()
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL}, train="train.txt")
    (tmp_path / "train.txt").write_text("".join(f"images/train/{stem}.png\n" for stem in TRAIN))
    (tmp_path / what).unlink()
    assert callable(make)
    make(tmp_path / what)
    if what in ("train.txt", "data.yaml"):
        assert str(tmp_path) in refusal(source)
    else:
        data = read_dataset(source)
        (left,) = data.train.left_out
        assert what in left.what and len(data.train.samples) == 2


@pytest.mark.parametrize(
    "head",
    [
        hostile_labels.BILLION_LAUGHS,
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
        "<!DOCTYPE annotation>",
    ],
)
def test_xml_with_a_doctype_leaves_its_image_out(tmp_path: Path, head: str) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    file = tmp_path / "annotations" / "a.xml"
    file.write_text(head + file.read_text().replace(NAMES[0], "&i;" if "ENTITY a" in head else NAMES[0]))
    start = time.monotonic()
    data = read_dataset(source)
    assert time.monotonic() - start < 1
    (left,) = data.train.left_out
    assert f"`{file}` is not valid XML: it has a DOCTYPE" in left.what and len(data.train.samples) == 2


def test_xml_size_with_too_many_digits_is_not_compared(tmp_path: Path) -> None:
    source = write_voc(tmp_path, {"train": TRAIN, "val": VAL})
    file = tmp_path / "annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>100<", f"<width>{'1' * 5000}<"))
    assert len(read_dataset(source).train.samples) == 3


@pytest.mark.parametrize("line", ["a\0b", "x" * 300, "x/" * 3000, "/", ".", "x" * 9000])
def test_line_of_a_list_that_is_no_path_is_left_out(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path / "voc", {"train": TRAIN, "val": VAL})
    (tmp_path / "voc" / "train.txt").write_text(f"a\nb\n{line}\n")
    source = write_yolo(tmp_path / "yolo", {"train": TRAIN, "val": VAL}, train="train.txt")
    (tmp_path / "yolo" / "train.txt").write_text(f"images/train/a.png\n{line}\n")
    for place in (tmp_path / "voc", source):
        if line == "/" and place == source:
            continue  # outside the data set
        data = read_dataset(place)
        assert len(data.train.left_out) == 1 and len(data.train.left_out[0].what) < 1000
