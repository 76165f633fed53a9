"""The images that are held out, and copies of pictures."""

import hashlib
import logging
import shutil
from pathlib import Path

import pytest
from data_sets import Boxes, write_yolo

from prompt_tune.datasets.held_out import content_digest, copied, pictures
from prompt_tune.datasets.reading import DataSet, read_dataset, read_split

A, B = (0, 10, 20, 50, 60, False), (1, 30, 10, 70, 40, False)


def held(data: DataSet) -> list[str]:
    return [sample.path.stem for sample in data.val.samples]


def trained(data: DataSet) -> set[int]:
    return {int(k) for sample in data.train.samples for k in sample.classes}


def test_a_draw_that_breaks_no_rule_is_that_of_earlier_versions(tmp_path: Path) -> None:
    boxes: Boxes = {f"{i:02}": [A, B] if i < 10 else [] for i in range(20)}
    source = write_yolo(tmp_path, {"train": boxes})
    for seed, expected in ((0, ["04", "06", "12", "19"]), (1, ["04", "08", "10", "11"])):
        data = read_dataset(source, seed=seed)
        assert held(data) == held(read_dataset(source, seed=seed, recorded=())) == expected


@pytest.mark.parametrize("seed", range(10))
def test_every_class_keeps_a_training_image(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    source = write_yolo(tmp_path, {"train": {"0": [A], "1": [A], "2": [A], "3": [A], "4": [B]}})
    data = read_dataset(source, seed=seed)
    assert trained(data) == {0, 1} and len(held(data)) == 1
    assert held(data) == held(read_dataset(source, seed=seed))
    assert "Too rare to validate: traffic light." in caplog.text


def test_one_image_of_each_class_is_trained_and_validated_on_and_a_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_yolo(tmp_path, {"train": {"0": [A], "1": [B]}})
    data = read_dataset(source)
    assert trained(data) == {0, 1} and held(data) == ["0", "1"]
    assert "no image can be held out" in caplog.text and "the same images as training" in caplog.text
    recorded = [content_digest(sample.path) for sample in data.val.samples]
    again = read_dataset(source, recorded=recorded)
    assert (trained(again), held(again)) == (trained(data), held(data))


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_picture_stay_together(tmp_path: Path, by_name: bool, seed: int) -> None:
    stems = [f"{i}_jpg.rf.{j}" for i in range(4) for j in "abc"]
    source = write_yolo(tmp_path, {"train": {stem: [A] for stem in stems}})
    if not by_name:
        content: dict[str, bytes] = {}
        for stem in stems:
            image = tmp_path / "images" / "train" / f"{stem}.png"
            label = tmp_path / "labels" / "train" / f"{stem}.txt"
            content[stem[0]] = content.get(stem[0], image.read_bytes())
            image.write_bytes(content[stem[0]])
            image.rename(image.with_stem(stem.replace("_jpg.rf.", "-")))
            label.rename(label.with_stem(stem.replace("_jpg.rf.", "-")))
    data = read_dataset(source, seed=seed)
    assert len({stem[0] for stem in held(data)}) == 1 and len(held(data)) == 3


def test_the_images_that_a_run_recorded_are_held_out(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": {str(i): [A] for i in range(10)}})
    recorded = [content_digest(s.path) for s in read_dataset(source, seed=3).train.samples[:2]]
    data = read_dataset(source, seed=3, recorded=recorded)
    assert [content_digest(sample.path) for sample in data.val.samples] == recorded
    assert [s.path for s in read_split(source, "val", recorded=recorded)[1].samples] == [
        s.path for s in data.val.samples
    ]


def test_validation_copies_of_training_images_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_yolo(tmp_path, {"train": {"0": [A], "1": [B]}, "val": {"2": [A], "3": [A]}})
    with caplog.at_level(logging.WARNING):
        read_dataset(source)
        assert not caplog.messages
        shutil.copy(next(tmp_path.rglob("0.png")), next(tmp_path.rglob("2.png")))
        read_dataset(source)
    assert "1 of 2 validation images are copies of training images" in caplog.text


def test_pictures_by_content_and_by_roboflow_name(tmp_path: Path) -> None:
    files = {"a.png": b"1", "b.png": b"1", "c.png": b"2", "d_jpg.rf.1.jpg": b"333", "d_jpg.rf.2.jpg": b"1", "e": b"44"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in files]
    assert pictures(paths) == [0, 0, 2, 0, 0, 5]
    assert copied(paths[2:4], paths[:1] + paths[4:]) == [False, True]
    assert content_digest(paths[0]) == hashlib.sha256(b"1").hexdigest()
