"""Data sets in three formats: the same boxes from each, splits, names, and what is not a data set."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import (
    NAMES,
    RACCOON,
    TRAIN,
    VAL,
    Boxes,
    check_split,
    coco_content,
    save_images,
    write_coco,
    write_devkit,
    write_roboflow,
    write_voc,
    write_yolo,
)

from prompt_tune.datasets.reading import DataSet, SplitName, read_dataset, read_split
from prompt_tune.errors import DataError


@pytest.mark.parametrize(
    ("write", "kind"),
    [(write_yolo, "yolo"), (write_coco, "coco"), (write_roboflow, "coco"), (write_voc, "voc"), (write_devkit, "voc")],
)
def test_read_dataset_every_format_gives_the_same_boxes(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path], kind: str
) -> None:
    source = write(tmp_path, {"train": TRAIN, "val": VAL, "test": VAL})
    data = read_dataset(source)
    assert (data.names, data.kind, data.source, data.held_out) == (tuple(NAMES), kind, source, False)
    with_ignored = kind != "yolo"
    check_split(data.train, TRAIN, with_ignored=with_ignored)
    check_split(data.val, VAL, with_ignored=with_ignored)
    check_split(read_split(source, "test")[1], VAL, with_ignored=with_ignored)


@pytest.mark.parametrize("write", [write_yolo, write_coco, write_roboflow, write_voc, write_devkit])
def test_read_dataset_no_validation_holds_out_a_seeded_fifth(
    tmp_path: Path,
    write: Callable[[Path, dict[str, Boxes]], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    boxes: Boxes = {f"{i:02}": TRAIN["a"] if i < 20 else [] for i in range(30)}
    source = write(tmp_path, {"train": boxes})

    def stems(seed: int) -> list[str]:
        data = read_dataset(source, seed=seed)
        assert data.held_out
        train, val = ([sample.path.stem for sample in split.samples] for split in (data.train, data.val))
        assert sorted(train + val) == list(boxes)
        assert val == sorted(val)
        assert sum(int(stem) < 20 for stem in val) == 4  # of those with boxes
        assert sum(int(stem) >= 20 for stem in val) == 2  # of the background
        return val

    with caplog.at_level(logging.INFO):
        assert stems(0) == stems(0) != stems(1)
    one = f"`{source}`: train 24 images, 32 boxes, 8 background images; val 6 images, 8 boxes, 2 background images; "
    drawn = "the validation images are held out of the training images, drawn with seed 0; 2 classes."
    assert caplog.messages[0] == f"{one}{drawn} Left out: nothing."
    assert len(caplog.records) == 3


def test_read_dataset_folder_with_one_yaml_is_read(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    assert read_dataset(str(tmp_path)).kind == "yolo"
    (tmp_path / "other.yml").write_text("train: x")
    with pytest.raises(DataError, match=r"2 YAML files \(data.yaml, other.yml\)"):
        read_dataset(tmp_path)


def test_read_dataset_given_names_replace_its_own(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL})
    assert read_dataset(source, names=["truck", "signal"]).names == ("truck", "signal")
    for names, message in (
        (["truck"], r"must name the 2 classes of .* \(lorry, traffic light\). Received: 1 names."),
        (NAMES[::-1], "another order"),
        (["truck", " "], "a class name is empty"),
        (["truck", "truck"], "Repeated: truck"),
    ):
        with pytest.raises(DataError, match=message):
            read_dataset(source, names=names)


def test_read_dataset_no_boxes_raises(tmp_path: Path) -> None:
    empty: Boxes = {"a": [], "b": []}
    with pytest.raises(DataError, match="the 2 images of `train` have no box"):
        read_dataset(write_yolo(tmp_path / "yolo", {"train": empty, "val": VAL}))
    with pytest.raises(DataError, match="the 2 images of `val` have no box"):
        read_dataset(write_coco(tmp_path / "coco", {"train": TRAIN, "val": empty}))
    ignored: Boxes = {"a": [(0, 1, 1, 9, 9, True)]}
    with pytest.raises(DataError, match="the 1 image of `train` have no box"):
        read_dataset(write_voc(tmp_path / "voc", {"train": ignored, "val": VAL}))
    with pytest.raises(DataError, match="one image with boxes cannot be split"):
        read_dataset(write_yolo(tmp_path / "one", {"train": {"a": TRAIN["a"], "b": []}}))


def test_read_dataset_no_data_set_there_raises(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "broken.yaml").write_text("train: [a\nb: c")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "latin.yaml").write_bytes(b"train: \xe9t\xe9")
    (tmp_path / "empty").mkdir()
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(coco_content(VAL)))
    for name, message in (
        ("gone", "no such file or folder. Give an ultralytics YAML"),
        ("labels.json", "is not a data set. Give an ultralytics YAML, a YAML that names COCO files"),
        ("empty", "is not a data set in a known format"),
        ("broken.yaml", r"broken\.yaml`, line 2: not valid YAML"),
        ("list.yaml", "must hold a mapping"),
        ("latin.yaml", "is not UTF-8 text"),
        ("", "has no training images"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_dataset(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("splits", [{"train": TRAIN, "val": VAL}, {"train": TRAIN}])
def test_read_split_is_that_of_the_whole_data_set(tmp_path: Path, splits: dict[str, Boxes], split: SplitName) -> None:
    source = write_yolo(tmp_path, splits)
    names, images = read_split(source, split, seed=3)
    whole = getattr(read_dataset(source, seed=3), split)
    assert names == tuple(NAMES)
    assert [sample.path for sample in images.samples] == [sample.path for sample in whole.samples]


def test_read_split_needs_no_other_split(tmp_path: Path) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(coco_content(VAL)))
    save_images(tmp_path / "valid", list(VAL))
    for source in (tmp_path, write_yolo(tmp_path / "yolo", {"val": VAL})):
        assert [sample.path.stem for sample in read_split(source, "val")[1].samples] == ["d"]
        with pytest.raises(DataError, match=r"has no `test` images\. It has: val\."):
            read_split(source, "test")
        with pytest.raises(DataError, match="has no training images"):
            read_dataset(source)


def test_read_dataset_validation_on_training_images_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_dataset(write_yolo(tmp_path, {"train": TRAIN}, val="images/train"))
    assert "3 validation images are among the training images too" in caplog.text


@pytest.mark.skipif(
    not RACCOON.is_dir(), reason=f"{RACCOON} is not there: the photos stand beside the clone, not in it"
)
def test_read_dataset_raccoon_photos_are_read_whole() -> None:
    data: DataSet = read_dataset(RACCOON)
    assert (data.names, data.kind, data.held_out) == (("raccoon",), "voc", False)
    assert (len(data.train.samples), len(data.val.samples)) == (160, 40)
    assert data.train.left_out == data.val.left_out == ()
    assert sum(len(sample.labels.classes) for split in (data.train, data.val) for sample in split.samples) == 217
    first = next(sample for sample in data.train.samples if sample.path.stem == "raccoon-1")
    assert (first.size_wh, first.labels.boxes_xyxy.tolist()) == ((650, 417), [[81, 88, 522, 408]])


def test_read_split_without_a_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the 1 image of `test` have no box"):
        read_split(write_yolo(tmp_path, {"test": {"c": []}}), "test")


@pytest.mark.parametrize("fault", ["missing", "empty", "bad label", "bad id"])
def test_read_dataset_a_bad_test_split_stops_nothing_that_does_not_use_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN, "val": VAL, "test": VAL})
    images = tmp_path / "images" / "test"
    label = next((tmp_path / "labels" / "test").glob("*.txt"))
    if fault in ("missing", "empty"):
        for image in images.iterdir():
            image.unlink()
    if fault == "missing":
        images.rmdir()
    if fault == "bad label":
        label.write_text("0 a b c d\n", "utf-8")
    if fault == "bad id":
        label.write_text("99 .5 .5 .1 .1\n", "utf-8")
    data = read_dataset(source)
    assert len(data.train.samples) == len(TRAIN)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(read_split(source, "val")[1].samples) == len(VAL)
    with pytest.raises(DataError):
        read_split(source, "test")


@pytest.mark.parametrize("write", [write_coco, write_roboflow, write_voc, write_devkit])
def test_read_dataset_a_bad_test_annotation_stops_nothing_that_does_not_use_it(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path]
) -> None:
    boxes = {f"t{name}": rows for name, rows in VAL.items()}
    source = write(tmp_path, {"train": TRAIN, "val": VAL, "test": boxes})
    root = source if source.is_dir() else source.parent
    files = [
        path for path in root.rglob("*") if path.suffix in (".json", ".xml") and "test" in str(path)[len(str(root)) :]
    ]
    files = files or [path for path in root.rglob("*.xml") if path.stem in boxes]
    for file in files:
        file.write_text("{", "utf-8")
    assert files
    data = read_dataset(source)
    assert data.names == tuple(NAMES)
    with pytest.raises(DataError):
        read_split(source, "test")


@pytest.mark.parametrize("write", [write_yolo, write_voc, write_devkit])
def test_read_dataset_metadata_is_no_data(
    tmp_path: Path, write: Callable[[Path, dict[str, Boxes]], Path], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"train": TRAIN})
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\xb0")
        for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
            (path.parent / folder).mkdir(exist_ok=True)
            (path.parent / folder / path.name).write_bytes(path.read_bytes())
    _, split = read_split(tmp_path, "train")
    assert len(read_dataset(tmp_path).train.samples) < len(TRAIN)  # some are held out
    samples = {sample.path for sample in split.samples} | {
        sample.path for sample in read_split(tmp_path, "val")[1].samples
    }
    assert len(samples) == len(TRAIN)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and "Left" in record.message]
