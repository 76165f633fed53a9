"""Replay: which images, how many of them, and that no box of theirs is ever a positive."""

import json
import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from assigning import assign
from data_sets import (
    RACCOON,
    TRAIN,
    VAL,
    Boxes,
    Phrases,
    write_coco,
    write_devkit,
    write_grounding,
    write_roboflow,
    write_voc,
    write_yolo,
)
from PIL import Image

from prompt_tune.datasets.reading import read_dataset
from prompt_tune.datasets.replay import RATIO, ReplaySource, choose_replay, name_pattern, parse_replay, read_replay
from prompt_tune.datasets.samples import Split
from prompt_tune.errors import DataError
from prompt_tune.tuning.regions import Regions

CLASSES = (("gizmo",), ("truck", "lorry"), ("light",))  # the labels are lorry and traffic light


def save_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colour = zlib.crc32(name.encode()).to_bytes(4, "big")[:3]  # pictures differ, or they would be copies of one
        Image.new("RGB", (100, 80), tuple(colour)).save(folder / name)
    return folder


def stems(split: Split) -> list[str]:
    return [sample.path.stem for sample in split.samples]


@pytest.mark.parametrize(
    ("prompts", "text", "expected"),
    [
        (("forklift",), "", False),
        (("forklift",), "the red Forklift", True),
        (("forklift",), "two forklifts.", True),
        (("forklift",), "forklift's driver", True),
        (("forklift",), "forkliftish", False),
        (("forklift",), "a pforklift", False),
        (("fork",), "forklift", False),
        (("truck", "lorry"), "lorries", True),
        (("box",), "boxes", True),
        (("boxes",), "a box", True),
        (("lorries",), "a lorry", True),
        (("bus",), "busy", False),
        (("traffic light",), "a Traffic_Light", True),
        (("traffic light",), "traffic-lights", True),
        (("traffic light",), "traffic  light", True),
        (("traffic light",), "light traffic", False),
        (("traffic light",), "traffic. light", False),
        (("traffic light",), "lights in traffic", False),
        (("C++",), "C", False),
        (("C++",), "the c++ book", True),
        (("a.b",), "axb", False),
        (("-",), "two-fold", False),
        (("Größe",), "die größe", True),
        (("crab",), "crab_(animal)", True),
    ],
)
def test_name_pattern_finds_whole_words_in_any_number(prompts: tuple[str, ...], text: str, expected: bool) -> None:
    assert bool(name_pattern(prompts).search(text)) is expected


@pytest.mark.parametrize(
    ("write_set", "with_ignored"),
    [(write_yolo, False), (write_coco, True), (write_roboflow, True), (write_voc, True), (write_devkit, True)],
)
def test_read_replay_data_set_keeps_named_boxes_as_ignored(
    tmp_path: Path, write_set: Callable[[Path, dict[str, Boxes]], Path], with_ignored: bool
) -> None:
    replayed = read_replay(write_set(tmp_path, {"train": TRAIN, "val": VAL}), CLASSES)
    assert stems(replayed) == ["a", "b", "c"]
    for sample in replayed.samples:
        rows = [row for row in TRAIN[sample.path.stem] if with_ignored or not row[5]]
        assert sample.labels.classes.tolist() == [
            row[0] + 1 for row in rows
        ]  # lorry is of truck, traffic light of light
        np.testing.assert_allclose(
            sample.labels.boxes_xyxy, np.array([row[1:5] for row in rows]).reshape(-1, 4), atol=1e-4
        )
        assert sample.labels.ignore.all()
        assert sample.labels.classes.dtype == np.int64
        assert sample.labels.boxes_xyxy.dtype == np.float32


def test_read_replay_data_set_of_other_classes_is_background(tmp_path: Path) -> None:
    replayed = read_replay(write_yolo(tmp_path, {"train": TRAIN}), [("gizmo",), ("lightning",)])
    assert stems(replayed) == ["a", "b", "c"]  # nothing is held out
    assert [len(sample.labels.classes) for sample in replayed.samples] == [0, 0, 0]


def test_read_replay_data_set_without_labels_or_training_images_is_read(tmp_path: Path) -> None:
    empty: Boxes = {"a": [], "b": []}
    assert stems(read_replay(write_yolo(tmp_path / "empty", {"train": empty}), CLASSES)) == ["a", "b"]
    only_val = read_replay(write_coco(tmp_path / "val", {"val": VAL}), CLASSES)
    assert (stems(only_val), only_val.samples[0].labels.classes.tolist()) == (["d"], [1])
    with pytest.raises(DataError, match="has no `train` and no `val`"):
        read_replay(write_yolo(tmp_path / "test", {"test": VAL}), CLASSES)


def test_read_replay_label_of_two_classes_is_ignored_for_both(tmp_path: Path) -> None:
    source = write_yolo(tmp_path, {"train": {"a": [(1, 10, 20, 50, 60, False)]}})
    (sample,) = read_replay(source, [("light",), ("forklift",), ("traffic light",)]).samples
    assert sample.labels.classes.tolist() == [0, 2]
    np.testing.assert_allclose(sample.labels.boxes_xyxy, [[10, 20, 50, 60]] * 2, atol=1e-4)


@pytest.mark.parametrize("class_id", [2, -1])
def test_read_replay_class_id_outside_the_names_raises(tmp_path: Path, class_id: int) -> None:
    source = write_yolo(tmp_path, {"train": TRAIN})
    (tmp_path / "labels/train/b.txt").write_text(f"{class_id} 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=rf"b\.txt`, line 1: class id {class_id} is outside the names \(0 to 1\)"):
        read_replay(source, CLASSES)


def test_read_replay_folder_has_all_images_below_it(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "[odd] photos", "b.jpg", "deeper/a.png", "deeper/still/c.jpg")
    (folder / "notes.txt").write_text("no image")
    replayed = read_replay(folder, CLASSES)
    assert sorted(stems(replayed)) == ["a", "b", "c"]
    assert all(len(sample.labels.boxes_xyxy) == 0 for sample in replayed.samples)
    assert {sample.size_wh for sample in replayed.samples} == {(100, 80)}


def test_read_replay_grounding_set_with_and_without_yaml(tmp_path: Path) -> None:
    boxes: Phrases = [(["red truck"], 10, 20, 30, 40), (["man"], 1, 2, 3, 4)]
    file = write_grounding(
        tmp_path, [("b.png", "a man in a red truck", boxes), ("a.png", "a gizmo", []), ("c.png", "", [])]
    )
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"images": "images", "grounding": "final_set.json"}))
    for source in (file, tmp_path / "set.yaml"):
        a, b, c = (sample.labels for sample in read_replay(source, CLASSES).samples)
        assert (a.classes.tolist(), a.boxes_xyxy.tolist(), a.ignore.tolist()) == ([0], [[0, 0, 100, 80]], [True])
        assert (b.classes.tolist(), b.boxes_xyxy.tolist(), b.ignore.tolist()) == ([1], [[10, 20, 40, 60]], [True])
        assert len(c) == 0
        assert stems(read_replay(source, CLASSES)) == ["a", "b", "c"]


def test_read_replay_grounding_image_of_another_size_raises_where_boxes_matter(tmp_path: Path) -> None:
    file = write_grounding(tmp_path, [("a.png", "a truck", []), ("b.png", "a dog", [])])
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "b.png")
    assert stems(read_replay(file, CLASSES)) == ["a", "b"]  # no box of b is kept
    Image.new("RGB", (50, 40)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png` is 50x40 pixels \(upright\), but its label was made for 100x80"):
        read_replay(file, CLASSES)


def test_read_replay_regions_in_ignored_boxes_have_no_weight_for_that_class(tmp_path: Path) -> None:
    """The contract with the loss: negatives everywhere, except where an object of the class may be."""
    source = write_yolo(tmp_path, {"train": {"a": [(0, 10, 20, 50, 60, False)]}})
    (sample,) = read_replay(source, CLASSES).samples
    points = torch.tensor([[30.0, 40.0], [80.0, 40.0]])  # in the lorry, and beside it
    image = Regions(
        head=torch.zeros(2, 4),
        boxes_xyxy=torch.tensor([[10.0, 20, 50, 60], [70, 30, 90, 50]]),
        anchor=torch.tensor([0, 1]),
        labels=sample.labels,
        frame_xyxy=np.array([0, 0, 100, 80], np.float32),
    )
    targets, weights = assign(torch.full((2, 3), 0.5), [image], points, [8])
    assert not targets.any()
    assert weights.tolist() == [[1, 0, 1], [1, 1, 1]]


def test_read_replay_count_draws_by_seed_and_opens_no_other_image(tmp_path: Path) -> None:
    names = [f"{i:02d}.jpg" for i in range(40)]
    folder = save_images(tmp_path, *names)
    first = stems(read_replay(folder, CLASSES, count=8, seed=1))
    assert len(first) == 8 and first == sorted(first)
    assert stems(read_replay(folder, CLASSES, count=8, seed=1)) == first
    assert stems(read_replay(folder, CLASSES, count=8, seed=2)) != first
    for name in names:
        if Path(name).stem not in first:
            (folder / name).write_bytes(b"nothing")  # would be skipped and named if it were opened
    again = read_replay(folder, CLASSES, count=8, seed=1)
    assert (stems(again), again.left_out) == (first, ())
    with pytest.raises(DataError, match=r"must be at least 1\. Received: 0"):
        read_replay(folder, CLASSES, count=0)


def test_read_replay_damaged_image_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_images(tmp_path, "a.jpg", "b.jpg")
    (folder / "b.jpg").write_bytes(b"nothing")
    replayed = read_replay(folder, CLASSES)
    assert (stems(replayed), len(replayed.left_out)) == (["a"], 1)
    assert any(message.startswith(f"Left out: `{folder / 'b.jpg'}` cannot be read") for message in caplog.messages)
    (folder / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="`replay` split cannot be used: none of its 2 images can be read"):
        read_replay(folder, CLASSES)


def test_read_replay_missing_images_of_a_part_of_a_set_are_replaced_and_named(tmp_path: Path) -> None:
    rows: list[tuple[str, str, Phrases]] = [(f"{i:02d}.png", "a dog", []) for i in range(40)]
    file = write_grounding(tmp_path, rows)
    for i in range(0, 40, 2):
        (tmp_path / "images" / f"{i:02d}.png").unlink()
    replayed = read_replay(file, CLASSES, count=10, seed=3)
    assert len(replayed.samples) == 10
    assert all(int(stem) % 2 == 1 for stem in stems(replayed))
    assert replayed.left_out and all(int(Path(entry.what.split("`")[1]).stem) % 2 == 0 for entry in replayed.left_out)
    assert len(read_replay(file, CLASSES, count=30).samples) == 20


def test_read_replay_nothing_there_raises_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}))
    (tmp_path / "broken.yaml").write_text("a")
    for name, message in (
        ("gone", "no such file or folder. Give a data set that `fit` reads, a folder of images, a grounding set"),
        ("gone.json", "no such file or folder"),
        ("notes.txt", "nothing to replay. Give a data set"),
        ("empty", "and its subfolders hold no image, and it is not a data set"),
        ("coco.json", "COCO detection files have no captions"),
        ("broken.yaml", "must hold a mapping"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_replay(tmp_path / name, CLASSES)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos", ReplaySource("photos", RATIO)),
        ("photos=0.5", ReplaySource("photos", 0.5)),
        ("a=b=2", ReplaySource("a=b", 2.0)),
        ("photos= 1e-1", ReplaySource("photos", 0.1)),
    ],
)
def test_parse_replay_place_and_ratio(text: str, expected: ReplaySource) -> None:
    assert parse_replay(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a place before the `=`"),
        ("=0.5", "needs a place before the `=`"),
        ("photos=", r"such as `photos=0.5`. Received: ''"),
        ("photos=half", "Received: 'half'"),
        ("photos=0", "must be a number above 0. Received: 0.0"),
        ("photos=-1", "must be a number above 0. Received: -1.0"),
        ("photos=nan", "must be a number above 0. Received: nan"),
        ("photos=inf", "must be a number above 0. Received: inf"),
    ],
)
def test_parse_replay_mistake_raises(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_replay(text)


def test_parse_replay_existing_name_with_an_equals_sign_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lot=2").mkdir()
    assert parse_replay("lot=2") == ReplaySource("lot=2", RATIO)
    assert parse_replay("lot=2=0.5") == ReplaySource("lot=2", 0.5)
    assert parse_replay("lot=3") == ReplaySource("lot", 3.0)


def test_choose_replay_takes_of_each_source_its_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="prompt_tune.datasets.replay")
    many = save_images(tmp_path / "many", *(f"m{i:02d}.jpg" for i in range(30)))
    few = save_images(tmp_path / "few", "f0.jpg", "f1.jpg", "f2.jpg")
    (few / "f2.jpg").write_bytes(b"nothing")
    sources = [ReplaySource(str(many), 0.75), ReplaySource(str(few), 1.0)]
    chosen = choose_replay(sources, CLASSES, n_labelled=12, seed=4)
    both = stems(chosen.train) + stems(chosen.held_out)
    assert (sum(name[0] == "m" for name in both), sum(name[0] == "f" for name in both)) == (11, 2)
    assert len(set(both)) == 13 and len(chosen.held_out.samples) == 2  # a fifth as many as are trained on
    for split in (chosen.train, chosen.held_out):
        assert [sample.path for sample in split.samples] == sorted(sample.path for sample in split.samples)
    assert [entry.what.split("`")[1] for entry in chosen.train.left_out] == [str(few / "f2.jpg")]
    told = [message for message in caplog.messages if "fewer than" in message]
    assert told == [f"`{few}` has 3 images, fewer than the 14 to replay: all are taken."]
    assert stems(choose_replay(sources, CLASSES, n_labelled=12, seed=4).train) == stems(chosen.train)
    assert stems(choose_replay(sources, CLASSES, n_labelled=12, seed=5).train) != stems(chosen.train)


def test_choose_replay_leaves_labelled_images_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    labelled = [folder / "b.jpg"]
    chosen = choose_replay([ReplaySource(str(folder), 1.0)], CLASSES, 3, 0, labelled)
    assert stems(chosen.train) == ["a", "c"] and "Not replayed: 1 image, labelled in" in caplog.text
    with pytest.raises(DataError, match="All replayed images belong to the data set itself"):
        choose_replay([ReplaySource(str(folder), 1.0)], CLASSES, 3, 0, sorted(folder.iterdir()))


def test_choose_replay_leaves_copies_of_labelled_images_out(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "d_jpg.rf.12.jpg")
    labelled = [*save_images(tmp_path / "own", "d_jpg.rf.34.jpg").iterdir()]
    labelled.append(Path(shutil.copy(folder / "b.jpg", tmp_path / "own" / "x.jpg")))
    chosen = choose_replay([ReplaySource(str(folder), 1.0)], CLASSES, 4, 0, labelled)
    assert sorted(stems(chosen.train) + stems(chosen.held_out)) == ["a", "c"]


def test_choose_replay_mistakes_raise(tmp_path: Path) -> None:
    folder = str(save_images(tmp_path / "photos", "a.jpg"))
    with pytest.raises(DataError, match=r"0\.1 times 3 labelled training images is less than one image\. Raise"):
        choose_replay([ReplaySource(folder, 0.1)], CLASSES, 3, 0)
    with pytest.raises(DataError, match="is given twice"):
        choose_replay([ReplaySource(folder), ReplaySource(f"{folder}/")], CLASSES, 3, 0)


@pytest.mark.skipif(
    not RACCOON.is_dir(), reason=f"{RACCOON} is not there: the photos stand beside the clone, not in it"
)
def test_read_replay_raccoon_photos_are_read_whole() -> None:
    labelled = read_dataset(RACCOON).train.samples
    named = read_replay(RACCOON, [("cat",), ("trash panda", "raccoons")]).samples
    assert [sample.path for sample in named] == [sample.path for sample in labelled]
    for sample, label in zip(named, labelled, strict=True):
        np.testing.assert_array_equal(sample.labels.boxes_xyxy, label.labels.boxes_xyxy)
        assert sample.labels.ignore.all() and set(sample.labels.classes.tolist()) == {1}
    assert sum(len(sample.labels.classes) for sample in read_replay(RACCOON, [("cat",)]).samples) == 0
    photos = read_replay(RACCOON / "images", [("raccoon",)], count=50)  # without its labels it is a plain folder
    assert len(photos.samples) == 50 and not any(len(sample.labels.classes) for sample in photos.samples)
